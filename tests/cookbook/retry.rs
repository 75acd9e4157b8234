include!("../../examples/cookbook/retry.rs");

mod tests {
    use kinestream::testing::Outcome;

    use super::*;
    use crate::{SECOND, World, run_for};

    fn world() -> World {
        let world = World::new(1);
        world.kinesis.create_stream("invoices", 1);
        world.kinesis.create_stream("dead-orders", 1);
        world
    }

    #[tokio::test(start_paused = true)]
    async fn poison_record_is_set_aside_and_not_delivered_again() {
        let world = world();
        let shard = world.orders.shard(0);
        for (key, data) in [("a", "1"), ("b", "poison"), ("b", "2"), ("c", "3")] {
            shard.put_as(key, data);
        }
        // The retries take up to a minute, in which the records of other keys are billed.
        run_for(2 * SECOND, run(world.builder(), &world.kinesis.client())).await;
        let mut invoices = world.payloads("invoices").await;
        invoices.sort();
        assert_eq!(invoices, ["1", "3"]);
        assert_eq!(world.payloads("dead-orders").await, [""; 0]);
        // After a crash, the unacknowledged records are delivered again.
        run_for(100 * SECOND, run(world.builder(), &world.kinesis.client())).await;
        assert_eq!(world.payloads("dead-orders").await, ["poison"]);
        let invoices = world.payloads("invoices").await;
        assert_eq!(invoices.last().unwrap(), "2", "{invoices:?}");
        // After a restart, none of them is delivered again.
        shard.put_as("a", "4");
        run_for(100 * SECOND, run(world.builder(), &world.kinesis.client())).await;
        assert_eq!(world.payloads("dead-orders").await, ["poison"]);
        assert_eq!(world.payloads("invoices").await, [&invoices[..], &["4".to_owned()]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failure_is_retried() {
        let world = world();
        world.orders.shard(0).put("1");
        world.kinesis.next_calls("PutRecord", 3, Outcome::throttled());
        run_for(100 * SECOND, run(world.builder(), &world.kinesis.client())).await;
        assert_eq!(world.payloads("invoices").await, ["1"]);
        assert_eq!(world.payloads("dead-orders").await, [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn record_is_kept_if_the_dead_letters_fail_as_well() {
        let world = world();
        world.orders.shard(0).put("poison");
        world.kinesis.next_calls("PutRecord", 1, Outcome::failed(500, "InternalFailure", ""));
        run(world.builder(), &world.kinesis.client()).await.unwrap_err();
        assert_eq!(world.payloads("dead-orders").await, [""; 0]);
        run_for(100 * SECOND, run(world.builder(), &world.kinesis.client())).await;
        assert_eq!(world.payloads("dead-orders").await, ["poison"]);
    }
}
