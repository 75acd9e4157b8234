include!("../../examples/cookbook/typed_json.rs");

mod tests {
    use super::*;
    use crate::{SECOND, World, run_for};

    #[tokio::test(start_paused = true)]
    async fn record_that_is_no_order_is_written_to_the_file_once() {
        let world = World::new(1);
        let shard = world.orders.shard(0);
        shard.put(r#"{"number": 1, "customer": "Ada"}"#);
        shard.put(r#"{"number": "two"}"#);
        shard.put(r#"{"number": 3, "customer": "Grace"}"#);
        let mut file = Vec::new();
        run_for(10 * SECOND, run(world.builder(), &mut file)).await;
        let text = String::from_utf8(file).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("invalid type: string"), "{text}");
        assert!(text.contains("two"), "{text}");
        // After a restart, nothing is delivered again.
        let mut file = Vec::new();
        run_for(10 * SECOND, run(world.builder(), &mut file)).await;
        assert_eq!(file, b"");
    }
}
