use super::super::KclTable;
use super::super::row::{Row as KclRow, write};
use super::Gone::{Finished, Lost};
use super::*;
use crate::store::Scope;

fn shard(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

fn item(key: &str) -> Item {
    let mut item = Item::new();
    let row = KclRow::new("billing:orders", "TRIM_HORIZON", BTreeSet::new());
    let (values, names) = (write(None, Some(&row)).values(), write(None, Some(&row)).names());
    for part in write(None, Some(&row)).update().unwrap().trim_start_matches("SET ").split(", ") {
        let (name, value) = part.split_once(" = ").unwrap();
        let (name, value) = (&names.as_ref().unwrap()[name], &values.as_ref().unwrap()[value]);
        item.insert(name.clone(), value.clone());
    }
    item.insert(LEASE_KEY.to_owned(), text(key));
    item
}

#[allow(clippy::option_option, reason = "an unknown table differs from one of one stream")]
fn identified(scope: &Scope, keys: &[&str]) -> std::result::Result<Option<Option<String>>, String> {
    let table = KclTable::new("leases");
    let kcl = Kcl::new(&table, scope);
    let items: Vec<Item> = keys.iter().map(|key| item(key)).collect();
    kcl.identify(&items).map_err(|error| error.to_string())?;
    Ok(kcl.with(|known| known.stream.clone()))
}

#[test]
fn stream_of_a_table_is_known_by_its_keys() {
    let named = Scope::new("billing", "orders");
    let by_arn = Scope::new("billing", "arn:aws:kinesis:eu-west-1:222222222222:stream/orders");
    let single = "shardId-000000000001";
    let one = "111111111111:orders:1700000000:shardId-000000000001";
    let later = "111111111111:orders:1800000000:shardId-000000000001";
    let two = "222222222222:orders:1600000000:shardId-000000000001";
    let other = "111111111111:payments:1700000000:shardId-000000000001";
    let stream = |key: &str| Ok(Some(Some(key.rsplit_once(':').unwrap().0.to_owned())));
    assert_eq!(identified(&named, &[]), Ok(None), "an empty table may become either");
    assert_eq!(identified(&named, &[single]), Ok(Some(None)));
    assert_eq!(identified(&named, &[one, other]), stream(one));
    assert_eq!(identified(&named, &[one, later]), stream(later), "the stream was created again");
    assert_eq!(identified(&by_arn, &[one, two]), stream(two));
    for (scope, keys, why) in [
        (&named, [one, two], "several accounts"),
        (&named, [single, one], "of one stream and of several"),
        (&named, [other, other], "none of orders"),
        (&by_arn, [one, other], "none of orders"),
    ] {
        let found = identified(scope, &keys).unwrap_err();
        assert!(found.contains("KCL table leases") && found.contains(why), "{found}");
    }
}

#[test]
fn row_of_another_stream_is_not_read() {
    let (table, scope) = (KclTable::new("leases"), Scope::new("billing", "orders"));
    let kcl = Kcl::new(&table, &scope);
    let own = item("111111111111:orders:1700000000:shardId-000000000001");
    let others = ["111111111111:payments:1700000000:shardId-000000000001", "shardId-000000000001"];
    kcl.identify(std::slice::from_ref(&own)).unwrap();
    let read = |item: &Item| kcl.read(item).unwrap().map(|(shard, _)| shard);
    assert_eq!(read(&own), Some(shard(1)));
    for other in others {
        assert_eq!(read(&item(other)), None, "{other}");
    }
}

/// Returns what is known of these leases, each with its parents, if these shards have rows.
fn gone(leases: &[(usize, &[usize])], with_rows: &[usize]) -> Vec<(usize, Gone)> {
    let mut bucket = Bucket::empty(0);
    for (number, parents) in leases {
        let ids: Vec<String> = parents.iter().map(|parent| shard(*parent).to_string()).collect();
        let parents = if ids.is_empty() { "-".to_owned() } else { ids.join(",") };
        bucket.set(&shard(*number), Some(&format!("7 - - 1 {parents} - - - -")));
    }
    let row = |number: &usize| {
        let item = Some(item(shard(*number).as_str()));
        (shard(*number), Row { item, ..Row::default() })
    };
    let all: Rows = with_rows.iter().map(row).collect();
    let mut rows = Rows::new();
    fill_gone(&mut rows, &all, &[bucket]);
    let mut found: Vec<(usize, Gone)> = leases
        .iter()
        .filter_map(|(number, _)| Some((*number, rows.get(&shard(*number))?.gone?)))
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found
}

#[test]
fn lease_without_a_row_is_finished_if_a_descendant_has_one() {
    // 0 was split into 1 and 2, and 1 into 3 and 4.
    let leases: [(usize, &[usize]); 5] = [(0, &[]), (1, &[0]), (2, &[0]), (3, &[1]), (4, &[1])];
    assert_eq!(gone(&leases, &[0, 1, 2, 3, 4]), []);
    assert_eq!(gone(&leases, &[2, 3, 4]), [(0, Finished), (1, Finished)]);
    assert_eq!(gone(&leases, &[3, 4]), [(0, Finished), (1, Finished), (2, Lost)]);
    let all_lost = [0, 1, 2, 3, 4].map(|number| (number, Lost));
    assert_eq!(gone(&leases, &[]), all_lost, "the table was emptied");
}
