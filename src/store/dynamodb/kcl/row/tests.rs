use proptest::prelude::*;

use super::*;

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn integer(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The row of a lease that the KCL 2 holds.
fn leased() -> Item {
    item([
        (LEASE_KEY, string("shardId-000000000001")),
        (COUNTER, integer(41)),
        (CHECKPOINT, string("4959")),
        (SUB_SEQUENCE_NUMBER, integer(2)),
        (OWNER, string("kcl-a")),
        (SWITCHES, integer(3)),
        (PARENTS, AttributeValue::Ss(vec!["shardId-000000000000".to_owned()])),
        ("startingHashKey", string("0")),
        ("endingHashKey", string("340282366920938463463374607431768211455")),
    ])
}

fn parse(item: &Item) -> Row {
    Row::parse(item).unwrap()
}

/// Applies a write as DynamoDB does; `None` if its condition does not hold.
fn apply(item: &Item, write: &Expressions) -> Option<Item> {
    let (names, values) = (write.names().unwrap_or_default(), write.values().unwrap_or_default());
    let holds = |condition: &str| {
        if let Some((name, value)) = condition.split_once(" = ") {
            return item.get(&names[name]) == Some(&values[value]);
        }
        let name = condition.strip_prefix("attribute_not_exists(").unwrap();
        !item.contains_key(&names[name.strip_suffix(')').unwrap()])
    };
    if !write.condition().unwrap().split(" AND ").all(holds) {
        return None;
    }
    let mut after = item.clone();
    let update = write.update().unwrap_or_default();
    let (set, removed) = update.split_once("REMOVE ").unwrap_or((&update, ""));
    for part in set.trim().trim_start_matches("SET ").split(", ").filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once(" = ").unwrap();
        after.insert(names[name].clone(), values[value].clone());
    }
    for name in removed.split(", ").filter(|name| !name.is_empty()) {
        after.remove(&names[name]);
    }
    Some(after)
}

#[test]
fn rows_of_every_version_are_parsed() {
    let mut first = leased();
    for name in ["startingHashKey", "endingHashKey", PARENTS, OWNER] {
        first.remove(name);
    }
    let mut handoff = leased();
    handoff.insert(OWNER.to_owned(), string("kcl-b"));
    handoff.insert(CHECKPOINT_OWNER.to_owned(), string("kcl-a"));
    handoff.insert("throughputKBps".to_owned(), AttributeValue::N("12.5".to_owned()));
    let mut typed = leased();
    typed.insert(ENTITY_TYPE.to_owned(), string("LEASE"));
    let mut null = leased();
    null.insert(OWNER.to_owned(), AttributeValue::Null(true));
    for (item, holder, next) in [
        (&first, None, None),
        (&leased(), Some("kcl-a"), Some("kcl-a")),
        (&handoff, Some("kcl-a"), Some("kcl-b")),
        (&typed, Some("kcl-a"), Some("kcl-a")),
        (&null, None, None),
    ] {
        let TableItem::Lease { stream: None, shard, row: Ok(row) } = TableItem::parse(item) else {
            panic!("{item:?}");
        };
        assert_eq!(shard.as_str(), "shardId-000000000001");
        assert_eq!((row.holder(), row.owner.as_deref()), (holder, next), "{item:?}");
        assert_eq!(row.foreign_holder(), holder, "no worker of this crate has claimed it");
        assert_eq!((row.counter, row.epoch), (41, None));
        assert_eq!(row.position(), RowPosition::Text("AFTER_SEQUENCE_NUMBER:4959:2".to_owned()));
    }
}

#[test]
fn rows_of_several_streams_name_their_stream() {
    let key = "123456789012:orders:1700000000:shardId-000000000007";
    let mut row = leased();
    row.insert(LEASE_KEY.to_owned(), string(key));
    row.insert(STREAM_NAME.to_owned(), string("123456789012:orders:1700000000"));
    row.insert(SHARD_ID.to_owned(), string("shardId-000000000007"));
    let TableItem::Lease { stream: Some(stream), shard, row: Ok(row) } = TableItem::parse(&row)
    else {
        panic!("a lease");
    };
    assert_eq!((stream_name(&stream), shard.as_str()), (Some("orders"), "shardId-000000000007"));
    assert_eq!(row.names.unwrap().0, stream);
    for other in ["", "orders", "a:orders:1", "1:orders:x", "1::2", "1:orders:2:3", "1:orders:"] {
        assert_eq!(stream_name(other), None, "{other:?}");
    }
}

#[test]
fn items_of_other_kinds_are_recognized() {
    for kind in ["STREAM", "LEADER", "WORKER_METRIC_STATS", "", "later"] {
        let mut other = leased();
        other.insert(ENTITY_TYPE.to_owned(), string(kind));
        assert_eq!(TableItem::parse(&other), TableItem::Other, "{kind}");
    }
    let mut other = leased();
    other.insert(ENTITY_TYPE.to_owned(), integer(1));
    assert_eq!(TableItem::parse(&other), TableItem::Other);
    for key in ["", "a b", "1:orders:2:", "orders:shardId-000000000001", ":"] {
        let mut unknown = leased();
        unknown.insert(LEASE_KEY.to_owned(), string(key));
        assert_eq!(TableItem::parse(&unknown), TableItem::Unknown(key.to_owned()), "{key:?}");
    }
    assert!(matches!(TableItem::parse(&Item::new()), TableItem::Unknown(_)));
}

#[test]
fn malformed_rows_are_unreadable_and_say_why() {
    for (name, value, why) in [
        (COUNTER, None, "it has no leaseCounter"),
        (COUNTER, Some(AttributeValue::Null(true)), "it has no leaseCounter"),
        (COUNTER, Some(string("41")), "its leaseCounter has a type"),
        (COUNTER, Some(AttributeValue::N("-1".to_owned())), "its leaseCounter is -1"),
        (COUNTER, Some(AttributeValue::N("9223372036854775808".to_owned())), "out of range"),
        (CHECKPOINT, None, "it has no checkpoint"),
        (CHECKPOINT, Some(integer(4959)), "its checkpoint has a type"),
        (SUB_SEQUENCE_NUMBER, Some(AttributeValue::N("1.5".to_owned())), "out of range"),
        (OWNER, Some(AttributeValue::Bool(true)), "its leaseOwner has a type"),
        (CHECKPOINT_OWNER, Some(integer(1)), "its checkpointOwner has a type"),
        (PARENTS, Some(string("shardId-000000000000")), "its parentShardId has a type"),
        (EPOCH, Some(string("7")), "its kinestreamEpoch has a type"),
        (NOTE, Some(integer(7)), "its kinestreamPosition has a type"),
    ] {
        let mut row = leased();
        match value {
            Some(value) => row.insert(name.to_owned(), value),
            None => row.remove(name),
        };
        let TableItem::Lease { row: Err(found), .. } = TableItem::parse(&row) else {
            panic!("{name} {why}");
        };
        assert!(found.contains(why), "{found}");
    }
    for (checkpoint, why) in [("AT_TIMESTAMP", "AT_TIMESTAMP"), ("x", "\"x\" is neither")] {
        let mut row = leased();
        row.insert(CHECKPOINT.to_owned(), string(checkpoint));
        let RowPosition::Unreadable(found) = parse(&row).position() else { panic!("{why}") };
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn claim_takes_the_row_from_a_kcl_and_keeps_its_place() {
    let mut seen = leased();
    seen.insert(CHECKPOINT_OWNER.to_owned(), string("kcl-b"));
    let claimed = parse(&seen).claimed("billing:orders", Some(7), Some("w"));
    let after = apply(&seen, &write(Some(&seen), Some(&claimed))).unwrap();
    assert_eq!(parse(&after), claimed);
    assert_eq!((claimed.counter, claimed.epoch, claimed.switches), (42, Some(7), Some(4)));
    assert_eq!((claimed.holder(), claimed.foreign_holder()), (Some("w"), None));
    assert_eq!(claimed.place, parse(&seen).place);
    for kept in ["startingHashKey", "endingHashKey", PARENTS, LEASE_KEY] {
        assert_eq!(after.get(kept), seen.get(kept), "{kept}");
    }
    let mut taken = claimed.clone();
    taken.owner = Some("kcl-a".to_owned());
    assert_eq!(taken.foreign_holder(), Some("kcl-a"), "a KCL has taken the row since");
    let freed = claimed.claimed("billing:orders", Some(7), None);
    assert_eq!((freed.holder(), freed.counter), (None, 43));
}

#[test]
fn save_replaces_a_pending_checkpoint() {
    let mut seen = leased();
    for name in PENDING {
        seen.insert(name.to_owned(), string("4960"));
    }
    let row = parse(&seen);
    let claimed =
        apply(&seen, &write(Some(&seen), Some(&row.claimed("s", Some(7), Some("w"))))).unwrap();
    assert!(PENDING.iter().all(|name| claimed.contains_key(*name)), "a claim keeps it");
    let saved = parse(&claimed).saved("CAUGHT_UP:1000:4961");
    let after = apply(&claimed, &write(Some(&claimed), Some(&saved))).unwrap();
    assert!(PENDING.iter().all(|name| !after.contains_key(*name)), "a save removes it");
    assert_eq!(after[CHECKPOINT], string("4961"));
    assert_eq!(after[SWITCHES], integer(0));
    assert_eq!(parse(&after).position(), RowPosition::Text("CAUGHT_UP:1000:4961".to_owned()));
}

#[test]
fn note_of_a_position_that_a_kcl_has_moved_does_not_count() {
    let saved = parse(&leased()).saved("AFTER_SEQUENCE_NUMBER:4961");
    let mut moved = saved.clone();
    moved.place = Place { checkpoint: "4962".to_owned(), sub_sequence_number: Some(0) };
    assert_eq!(moved.position(), RowPosition::Text("AFTER_SEQUENCE_NUMBER:4962:0".to_owned()));
    let mut never_read = parse(&leased()).saved("AT_TIMESTAMP:1000");
    assert_eq!(never_read.place, Place::trim_horizon());
    never_read.place.checkpoint = "LATEST".to_owned();
    assert_eq!(never_read.position(), RowPosition::Latest);
}

#[test]
fn end_of_a_shard_is_shown_to_a_kcl_after_its_children_have_rows() {
    let row = parse(&leased());
    assert_eq!(row.ended(&BTreeSet::new()), None, "an unfinished shard does not end");
    let saved = row.saved("SHARD_END");
    assert_eq!(saved.place, row.place, "a KCL still reads the shard to its end, and adds children");
    assert_eq!(saved.position(), RowPosition::Text("SHARD_END".to_owned()));
    let children = ["shardId-000000000002", "shardId-000000000003"].map(str::to_owned);
    let ended = saved.ended(&children.clone().into()).unwrap();
    assert_eq!(ended.place, Place::shard_end());
    assert_eq!(ended.children, children.into());
    assert_eq!(ended.position(), RowPosition::Text("SHARD_END".to_owned()));
    assert_eq!(ended.ended(&BTreeSet::new()), None, "once");
    let by_kcl = Row { place: Place::shard_end(), note: None, ..row };
    assert_eq!(by_kcl.position(), RowPosition::Text("SHARD_END".to_owned()));
}

#[test]
fn new_row_has_all_that_a_kcl_needs() {
    let parents: BTreeSet<String> = ["shardId-000000000000".to_owned()].into();
    let row = Row::new("billing:orders", "AT_TIMESTAMP:1000", parents);
    let created = apply(&Item::new(), &write(None, Some(&row))).unwrap();
    assert_eq!(parse(&created), row);
    for (name, value) in [
        (COUNTER, integer(0)),
        (SWITCHES, integer(0)),
        (CHECKPOINT, string("TRIM_HORIZON")),
        (SUB_SEQUENCE_NUMBER, integer(0)),
        (PARENTS, AttributeValue::Ss(vec!["shardId-000000000000".to_owned()])),
    ] {
        assert_eq!(created.get(name), Some(&value), "{name}");
    }
    assert!(!created.contains_key(OWNER) && !created.contains_key(CHILDREN), "{created:?}");
    assert_eq!(apply(&leased(), &write(None, Some(&row))), None, "no row is replaced");
    let without = Row::new("billing:orders", "", BTreeSet::new());
    assert_eq!(without.position(), RowPosition::None);
}

fn any_row() -> impl Strategy<Value = Row> {
    let position = prop_oneof![
        Just("TRIM_HORIZON".to_owned()),
        Just("LATEST".to_owned()),
        Just("SHARD_END".to_owned()),
        "[1-9]{1,2}",
    ];
    let worker = || prop::option::of("[ab]");
    let fields = (
        0..3_u64,
        position,
        prop::option::of(0..3_u64),
        prop::option::of(0..3_u64),
        worker(),
        worker(),
    );
    (fields, worker(), any::<bool>()).prop_map(|(fields, claimed_by, is_pending)| {
        let (counter, checkpoint, sub_sequence_number, epoch, owner, checkpoint_owner) = fields;
        Row {
            counter,
            place: Place { checkpoint, sub_sequence_number },
            epoch,
            owner,
            checkpoint_owner,
            claimed_by,
            note: None,
            is_pending,
            ..Row::new("s", "TRIM_HORIZON", BTreeSet::new())
        }
    })
}

/// Returns the stored item, with attributes that this crate does not know.
fn item_of(row: &Row) -> Item {
    let mut item = apply(&Item::new(), &write(None, Some(row))).unwrap();
    item.insert("later".to_owned(), string("kept"));
    item.insert("throughputKBps".to_owned(), AttributeValue::N("1.5".to_owned()));
    if row.is_pending {
        item.insert(PENDING[0].to_owned(), string("5"));
    }
    item
}

fn any_position() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("SHARD_END".to_owned()),
        "TRIM_HORIZON|AT_TIMESTAMP:[1-9]|CAUGHT_UP:[1-9]|CAUGHT_UP:[1-9]:[1-9]",
        "AFTER_SEQUENCE_NUMBER:[1-9]{1,2}(:[0-9])?",
        "[a-z]{1,5}",
    ]
}

proptest! {
    #[test]
    fn written_row_is_parsed_to_the_same_row(row in any_row()) {
        prop_assert_eq!(parse(&item_of(&row)), row);
    }

    #[test]
    fn change_applies_to_the_row_that_was_seen_alone(
        seen in any_row(),
        other in any_row(),
        position in any_position(),
        kind in 0..3_u8,
    ) {
        let after = match kind {
            0 => seen.saved(&position),
            1 => seen.claimed("s", Some(9), Some("w")),
            _ => seen.claimed("s", Some(9), None),
        };
        let item = item_of(&seen);
        let expressions = write(Some(&item), Some(&after));
        let written = apply(&item, &expressions).unwrap();
        prop_assert_eq!(&parse(&written), &after);
        prop_assert!(after.counter > seen.counter, "a KCL that holds the row notices");
        for kept in ["later", "throughputKBps", LEASE_KEY] {
            prop_assert_eq!(written.get(kept), item.get(kept));
        }
        let is_as_seen = [COUNTER, CHECKPOINT, SUB_SEQUENCE_NUMBER, EPOCH, OWNER, CHECKPOINT_OWNER]
            .iter()
            .all(|name| item_of(&other).get(*name) == item.get(*name));
        prop_assert_eq!(apply(&item_of(&other), &expressions).is_some(), is_as_seen);
        prop_assert_eq!(apply(&item_of(&other), &write(Some(&item), None)).is_some(), is_as_seen);
    }

    #[test]
    fn saved_position_is_read_as_it_was_saved(row in any_row(), position in any_position()) {
        let expected = match &*position {
            "" => RowPosition::None,
            text => RowPosition::Text(text.to_owned()),
        };
        prop_assert_eq!(row.saved(&position).position(), expected);
        let claimed = row.saved(&position).claimed("s", Some(9), Some("w"));
        prop_assert_eq!(claimed.position(), row.saved(&position).position());
    }

    #[test]
    fn save_never_moves_a_kcl_back(row in any_row(), before in any_position(), after in any_position()) {
        let [before, after] = [before, after].map(|text| text.parse::<crate::Checkpoint>());
        let (Ok(before), Ok(after)) = (before, after) else { return Ok(()) };
        prop_assume!(after.supersedes(&before));
        let old = row.saved(&before.to_string());
        let new = old.saved(&after.to_string());
        let number = |row: &Row| (row.place.checkpoint.len(), row.place.checkpoint.clone());
        let is_number = |row: &Row| row.place.checkpoint.parse::<u64>().is_ok();
        if is_number(&old) {
            prop_assert!(is_number(&new) && number(&new) >= number(&old), "{old:?} {new:?}");
        }
    }
}
