include!("../../examples/cookbook/dead_letter_table.rs");

mod tests {
    use std::time::Duration;

    use kinestream::testing::aggregate;

    use super::*;
    use crate::{SECOND, World, run_for};

    fn dead_letters(db: &Connection) -> Vec<(String, Vec<u8>, String)> {
        let mut select = db.prepare("SELECT key, data, error FROM dead_letters").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn poison_records_are_in_the_table_once() {
        let world = World::new(1);
        let shard = world.orders.shard(0);
        shard.put_as("a", "1");
        // Two poison records in one aggregated record, which share a sequence number.
        shard.put_as("any", aggregate([("b", "two"), ("c", "three"), ("d", "4")]));
        let db = Connection::open_in_memory().unwrap();
        // Crashes before the checkpoint is saved, and then not.
        let error = "invalid digit found in string".to_owned();
        let row = |key: &str, data: &str| (key.to_owned(), data.into(), error.clone());
        let expected = [row("b", "two"), row("c", "three")];
        let (mut crashes, mut rows) = (0, Vec::new());
        for millis in [500, 800, 1100, 1500, 2000, 10_000] {
            run_for(Duration::from_millis(millis), run(world.builder(), &db)).await;
            rows = dead_letters(&db);
            assert!(rows.is_empty() || rows == expected, "{rows:?}");
            crashes += usize::from(rows == expected);
        }
        assert_eq!(rows, expected);
        assert!(crashes > 1, "expected a crash after the first read");
        // The shard goes past them.
        shard.put_as("e", "five");
        run_for(10 * SECOND, run(world.builder(), &db)).await;
        assert_eq!(dead_letters(&db).len(), 3);
    }
}
