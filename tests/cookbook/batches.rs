include!("../../examples/cookbook/batches.rs");

mod tests {
    use std::path::Path;

    use kinestream::testing::aggregate;

    use super::*;
    use crate::{World, run_for, temporary_folder};

    fn stored(file: &Path) -> Vec<String> {
        let db = Connection::open(file).unwrap();
        let mut select = db.prepare("SELECT data FROM orders").unwrap();
        let rows = select.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let mut rows: Vec<_> = rows.map(|data| String::from_utf8(data.unwrap()).unwrap()).collect();
        rows.sort_by_key(|order| order.parse::<u32>().unwrap());
        rows
    }

    /// Crashes at any time, with aggregated records and a split.
    #[tokio::test(start_paused = true)]
    async fn each_order_is_stored_once_over_crashes() {
        let folder = temporary_folder("batches");
        let file = folder.join("orders.db");
        let world = World::new(1);
        let parent = world.orders.shard(0);
        for number in 0..100 {
            parent.put(number.to_string());
        }
        parent.put(aggregate((100..900).map(|number| ("any", number.to_string()))));
        let [left, right] = parent.split();
        left.put("900");
        right.put("901");
        for millis in [300, 1100, 1300, 1700, 3000, 20_000] {
            let db = Connection::open(&file).unwrap();
            run_for(Duration::from_millis(millis), run(world.builder(), db)).await;
        }
        let expected: Vec<_> = (0..902).map(|number| number.to_string()).collect();
        assert_eq!(stored(&file), expected);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
