include!("../../examples/cookbook/own_errors.rs");

mod tests {
    use std::error::Error;

    use kinestream::testing::Outcome;

    use super::*;
    use crate::{SECOND, World, run_for};

    #[tokio::test(start_paused = true)]
    async fn errors_of_the_handler_and_of_the_stream_have_one_type() {
        let world = World::new(1);
        world.orders.shard(0).put("17");
        run_for(10 * SECOND, run(world.builder())).await;
        world.orders.shard(0).put("seventeen");
        let error = run(world.builder()).await.unwrap_err();
        assert!(matches!(error, OrderError::NotANumber(_)), "{error:?}");
        // The failed record is delivered again, and the first one is not.
        let error = run(world.builder()).await.unwrap_err();
        assert!(matches!(error, OrderError::NotANumber(_)), "{error:?}");

        let denied = Outcome::failed(400, "AccessDeniedException", "no");
        world.kinesis.on_call(move |_| denied.clone());
        let error = run(world.builder()).await.unwrap_err();
        assert!(matches!(error, OrderError::Stream(_)), "{error:?}");
    }

    /// Compiles with other error types of handlers.
    #[tokio::test(start_paused = true)]
    async fn errors_convert_into_common_types() {
        async fn boxed(record: Record) -> Result<(), Box<dyn Error + Send + Sync>> {
            let _order: u32 = from_utf8(record.data())?.parse()?;
            record.ack();
            Ok(())
        }
        async fn any(record: Record) -> anyhow::Result<()> {
            let _order: u32 = from_utf8(record.data())?.parse()?;
            record.ack();
            Ok(())
        }
        let world = World::new(1);
        world.orders.shard(0).put("seventeen");
        let ack = || world.builder().checkpoint_on(CheckpointOn::Ack);

        let consumer = ack().build().unwrap();
        let records = consumer.records().err_into::<Box<dyn Error + Send + Sync>>();
        let error = records.try_for_each_concurrent(64, boxed).await.unwrap_err();
        assert!(error.is::<ParseIntError>(), "{error:?}");

        let consumer = ack().build().unwrap();
        let records = consumer.records().map_err(Into::into);
        let error: anyhow::Error = records.try_for_each_concurrent(64, any).await.unwrap_err();
        assert!(error.is::<ParseIntError>(), "{error:?}");

        let build = || -> anyhow::Result<Consumer> { Ok(ack().limit(0).build()?) };
        let error = build().unwrap_err();
        assert!(error.is::<kinestream::Error>(), "{error:?}");
    }
}
