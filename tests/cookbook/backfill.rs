include!("../../examples/cookbook/backfill.rs");

mod tests {
    use kinestream::testing::WallClock;
    use tokio::time::sleep;

    use super::*;
    use crate::World;

    #[tokio::test(start_paused = true)]
    async fn day_is_read_over_a_split_and_ends() {
        let world = World::new(2);
        world.kinesis.set_retention(7 * DAY);
        world.orders.shard(0).put("before");
        sleep(DAY / 2).await;
        let start = world.kinesis.now();
        sleep(DAY / 4).await;
        world.orders.shard(0).put("1");
        world.orders.shard(1).put("2");
        let [left, right] = world.orders.shard(0).split();
        sleep(DAY / 4).await;
        left.put("3");
        sleep(DAY).await;
        left.put("after");
        right.put("after");
        // Days have passed by the clock of the test only.
        let clock = WallClock::at(world.kinesis.now());
        let builder = || world.builder().wall_clock(&clock);
        assert_eq!(run(builder(), start).await.unwrap(), 3);
        // The job is complete, so a second run reads nothing.
        assert_eq!(run(builder(), start).await.unwrap(), 0);
    }
}
