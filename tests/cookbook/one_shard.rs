include!("../../examples/cookbook/one_shard.rs");

mod tests {
    use super::*;
    use crate::World;

    #[tokio::test(start_paused = true)]
    async fn only_the_named_shard_is_read() {
        let world = World::new(4);
        for shard in 0..4 {
            for number in 0..3 {
                world.orders.shard(shard).put(number.to_string());
            }
        }
        let shard = world.orders.shard(3).id();
        run(world.builder(), shard.as_str(), 3).await.unwrap();
        let reads: Vec<_> =
            world.kinesis.calls().into_iter().filter_map(|call| call.shard_id).collect();
        assert!(!reads.is_empty() && reads.iter().all(|read| *read == shard), "{reads:?}");
    }
}
