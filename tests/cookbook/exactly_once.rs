include!("../../examples/cookbook/exactly_once.rs");

mod tests {
    use std::path::Path;

    use kinestream::testing::aggregate;
    use kinestream::{IfLeased, MemoryStore};
    use tokio::time::sleep;

    use super::*;
    use crate::{SECOND, World, run_for, temporary_folder};

    fn stored(file: &Path) -> Vec<u32> {
        let db = Connection::open(file).unwrap();
        let mut select = db.prepare("SELECT number FROM orders").unwrap();
        let rows = select.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let number = |data: Vec<u8>| String::from_utf8(data).unwrap().parse().unwrap();
        let mut rows: Vec<u32> = rows.map(|data| number(data.unwrap())).collect();
        rows.sort_unstable();
        rows
    }

    /// Crashes at any time, inside an aggregated record too, with a split. Only the database is
    /// left after a crash.
    #[tokio::test(start_paused = true)]
    async fn each_order_is_stored_once_over_crashes_aggregates_and_a_split() {
        let folder = temporary_folder("exactly_once");
        let file = folder.join("orders.db");
        let world = World::new(1);
        let parent = world.orders.shard(0);
        for number in 0..150 {
            parent.put(number.to_string());
        }
        parent.put(aggregate((150..900).map(|number| ("any", number.to_string()))));
        let [left, right] = parent.split();
        left.put("900");
        right.put("901");
        let mut crashes = Vec::new();
        for millis in [300, 900, 1100, 1300, 2200, 20_000, 20_000] {
            let db = Connection::open(&file).unwrap();
            let builder = world.builder().store(MemoryStore::new());
            run_for(Duration::from_millis(millis), run(builder, db)).await;
            crashes.push(stored(&file).len());
        }
        assert!(crashes.iter().any(|count| (151..900).contains(count)), "{crashes:?}");
        assert_eq!(stored(&file), (0..902).collect::<Vec<_>>());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn worker_of_an_earlier_epoch_stores_nothing() {
        let world = World::new(1);
        world.orders.shard(0).put("0");
        world.orders.shard(0).put("1");
        let consumer = world.builder().checkpoint_on(CheckpointOn::Ack).build().unwrap();
        let mut records = consumer.records();
        let late = records.try_next().await.unwrap().unwrap();
        let late = [late, records.try_next().await.unwrap().unwrap()];
        let (shard, to) = (world.orders.shard(0).id(), Checkpoint::TrimHorizon);
        consumer.set_position(&shard, to, IfLeased::Force).await.unwrap();
        let record = records.try_next().await.unwrap().unwrap();
        assert!(record.epoch() > late[0].epoch());

        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("../../examples/cookbook/exactly_once.sql")).unwrap();
        let transaction = db.transaction().unwrap();
        assert!(advance(&transaction, &record).unwrap());
        assert!(!advance(&transaction, &late[0]).unwrap(), "expected a redelivery to be skipped");
        let error = advance(&transaction, &late[1]).unwrap_err().to_string();
        assert!(error.contains("another worker has acquired the shard"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn shard_that_was_quiet_for_longer_than_retention_is_read() {
        const HOUR: Duration = Duration::from_secs(3600);
        let folder = temporary_folder("exactly_once_quiet");
        let file = folder.join("orders.db");
        let world = World::new(1);
        world.kinesis.set_retention(24 * HOUR);
        world.orders.shard(0).put("0");
        for number in ["1", "2"] {
            let db = Connection::open(&file).unwrap();
            run_for(20 * SECOND, run(world.builder().store(MemoryStore::new()), db)).await;
            sleep(26 * HOUR).await;
            world.orders.shard(0).put(number);
        }
        assert_eq!(stored(&file), [0, 1]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
