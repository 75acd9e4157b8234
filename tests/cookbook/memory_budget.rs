include!("../../examples/cookbook/memory_budget.rs");

mod tests {
    use kinestream::StartingPosition;

    use super::*;
    use crate::{SECOND, World, run_for};

    #[tokio::test(start_paused = true)]
    async fn streams_share_a_budget_and_are_all_read() {
        let world = World::new(1);
        let streams = ["orders", "refunds", "returns"];
        world.kinesis.create_stream("refunds", 1);
        world.kinesis.create_stream("returns", 1);
        let budget = MemoryBudget::new(1024 * 1024);
        let builder = |stream: &str| {
            Consumer::builder(world.kinesis.client(), stream)
                .starting_position(StartingPosition::TrimHorizon)
                .store(world.store.clone())
        };
        world.orders.shard(0).put("1");
        run_for(10 * SECOND, run(streams.map(|stream| builder(stream).memory_budget(&budget))))
            .await;
        for stream in streams {
            let status = builder(stream).build().unwrap().status().await.unwrap();
            assert_eq!(status.shards.len(), 1, "expected {stream} to be read");
        }
        let orders = builder("orders").build().unwrap().status().await.unwrap();
        let position = orders.shards.values().next().unwrap().position.clone().unwrap();
        assert!(position.to_string().starts_with("AFTER_SEQUENCE_NUMBER"), "{position}");
    }
}
