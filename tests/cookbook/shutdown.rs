include!("../../examples/cookbook/shutdown.rs");

mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::{SECOND, World};

    #[tokio::test(start_paused = true)]
    async fn cancelled_program_closes_and_repeats_nothing() {
        let world = World::new(1);
        for number in 0..100 {
            world.orders.shard(0).put(number.to_string());
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(world.builder(), stop.clone()));
        sleep(10 * SECOND).await;
        stop.cancel();
        timeout(SECOND, running).await.expect("an end at once").unwrap().unwrap();

        let consumer = world.builder().build().unwrap();
        let status = consumer.status().await.unwrap();
        assert_eq!(status.workers, [""; 0], "expected the worker to have left");
        let mut records = consumer.records();
        let repeated = timeout(60 * SECOND, records.try_next()).await;
        assert!(repeated.is_err(), "expected no record to be delivered again: {repeated:?}");
    }
}
