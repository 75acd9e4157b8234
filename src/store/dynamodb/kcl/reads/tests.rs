use super::super::KclTable;
use super::super::fixtures::{item, shard};
use super::*;
use crate::store::Scope;

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
