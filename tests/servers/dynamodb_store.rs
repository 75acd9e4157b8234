//! Tests of `DynamoDbStore` against a server: conformance, the table, and the layout of its items.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType,
};
use kinestream::store::lease::{
    AdminEdit, EntryKey, Exchange, FencedSave, IfLeased, LeaseStore, Renewal,
};
use kinestream::store::{CheckpointStore, conformance};
use kinestream::{Checkpoint, DynamoDbStore, ErrorKind};

use crate::dynamodb_faults::{adding, asking, lease, position, text_of};
use crate::dynamodb_server::{DynamoDbServer, TABLE};
use crate::lease_access::LeaseAccess;
use crate::redis_store::{after, scope, shard};

#[tokio::test]
async fn dynamodb_store_conforms() {
    let (_server, store) = DynamoDbServer::with_table().await;
    conformance::check(&store).await;
}

#[tokio::test]
async fn dynamodb_store_conforms_as_lease_store() {
    let (_server, store) = DynamoDbServer::with_table().await;
    conformance::check_leases(&store).await;
    assert_eq!(store.default_checkpoint_interval(), Duration::from_secs(10));
    let store: Arc<dyn CheckpointStore> = Arc::new(store);
    assert!(store.leases().is_some());
}

#[tokio::test]
async fn table_is_created_once_and_only_when_asked() {
    let server = DynamoDbServer::start();
    let store = server.store();
    let missing = store.load(&scope()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Configuration, "{missing}");
    let (one, other) = tokio::join!(store.create_table(), store.create_table());
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    CheckpointStore::save(&store, &scope(), &[(shard(0), after(1))]).await.unwrap();
    store.create_table().await.unwrap();
    assert_eq!(store.load(&scope()).await.unwrap().len(), 1, "an existing table is kept");
    assert_eq!(format!("{store:?}"), "DynamoDbStore { table: \"kinestream\", .. }");
}

#[tokio::test]
async fn table_with_another_key_is_refused() {
    let server = DynamoDbServer::start();
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey");
    let attribute = attribute.attribute_type(ScalarAttributeType::S).build().unwrap();
    let request = server.client().create_table().table_name("billing");
    let request = request.billing_mode(BillingMode::PayPerRequest);
    let request = request.key_schema(key.build().unwrap()).attribute_definitions(attribute);
    request.send().await.unwrap();
    let store = DynamoDbStore::new(server.client(), "billing");
    for refused in [
        store.create_table().await.unwrap_err(),
        store.load(&scope()).await.unwrap_err(),
        store.save(&scope(), &[(shard(0), after(1))]).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Configuration, "{refused}");
        let said = refused.to_string();
        assert!(said.contains("partition key") && said.contains("sk"), "{said}");
    }
}

type Item = HashMap<String, AttributeValue>;

/// Returns all items by their sort keys.
async fn items(server: &DynamoDbServer) -> BTreeMap<String, Item> {
    let found = server.client().scan().table_name(TABLE).send().await.unwrap();
    let sort_key = |item: &Item| item["sk"].as_s().unwrap().clone();
    found.items.unwrap().into_iter().map(|item| (sort_key(&item), item)).collect()
}

fn names(item: &Item) -> BTreeSet<&str> {
    item.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn items_are_laid_out_as_documented() {
    let (server, store) = DynamoDbServer::with_table().await;
    let entries = [
        (EntryKey::Head, "1 0 0 0".to_owned()),
        (EntryKey::Worker("one".into()), "7 1 10000 3".to_owned()),
        lease(0, 7),
        position(0, "TRIM_HORIZON"),
    ];
    let mut exchange = asking(Some(adding(entries)), None);
    exchange.renewals = vec![Renewal::new("one", "7 1 10000 3", Duration::from_secs(10))];
    let version = store.exchange(&scope(), &exchange).await.unwrap().version;
    let save = FencedSave::new(shard(0), 7, Some("TRIM_HORIZON".into()), "SHARD_END");
    store.save_fenced(&scope(), &[save]).await.unwrap();

    let items = items(&server).await;
    let text = |sort: &str, name: &str| items[sort][name].as_s().unwrap().clone();
    let step = format!("step:{version:020}");
    let position = format!("position:{}", shard(0));
    let keys: Vec<&str> = items.keys().map(String::as_str).collect();
    assert_eq!(keys, ["head", "heartbeat:one", "leases:47", &*position, &*step]);
    assert!(items.values().all(|item| item["pk"].as_s().unwrap() == "billing:orders"));
    let expected = ["format", "pk", "sk", "text", "version", "versions"];
    assert_eq!(names(&items["head"]), expected.into());
    assert_eq!(items["head"]["version"].as_n().unwrap(), &version.to_string());
    assert_eq!(text("head", "text"), "1 0 0 0");
    assert_eq!(names(&items["heartbeat:one"]), ["mark", "pk", "sk", "text"].into());
    assert_eq!(names(&items["leases:47"]), ["leases", "pk", "rev", "sk"].into());
    let leases = items["leases:47"]["leases"].as_m().unwrap();
    assert_eq!(leases[shard(0).as_str()].as_s().unwrap(), &lease(0, 7).1);
    assert_eq!(names(&items[&position]), ["fence", "pk", "saver", "sk", "text"].into());
    assert_eq!(
        (text(&position, "text"), text(&position, "fence")),
        ("SHARD_END".into(), "7".into())
    );
    assert_eq!(items[&step]["keys"].as_l().unwrap().len(), 4);
}

#[tokio::test]
async fn log_keeps_the_last_steps() {
    let (server, store) = DynamoDbServer::with_table().await;
    let mut versions = Vec::new();
    for epoch in 0..70 {
        let mut step = adding([lease(0, epoch + 1)]);
        step.entries[0].expected = (epoch > 0).then(|| lease(0, epoch).1.into());
        let made = store.exchange(&scope(), &asking(Some(step), None)).await.unwrap();
        assert!(made.is_made);
        versions.push(made.version);
    }
    let kept = items(&server).await;
    assert_eq!(kept.keys().filter(|sort| sort.starts_with("step:")).count(), 64);
    for (age, is_known) in [(1, true), (63, true), (64, false)] {
        let known = versions[versions.len() - 1 - age];
        let answer = store.exchange(&scope(), &asking(None, Some(known))).await.unwrap();
        assert_eq!(!answer.is_whole, is_known, "a version that is {age} steps old");
    }
}

/// Replaces the text of a position by a number.
async fn damage(server: &DynamoDbServer, index: u32) {
    let string = |text: String| AttributeValue::S(text);
    let request = server.client().update_item().table_name(TABLE);
    let request = request.key("pk", string("billing:orders".into()));
    let request = request.key("sk", string(format!("position:{}", shard(index))));
    let request = request.update_expression("SET #t = :t").expression_attribute_names("#t", "text");
    let request = request.expression_attribute_values(":t", AttributeValue::N("7".into()));
    request.send().await.unwrap();
}

#[tokio::test]
async fn damaged_position_affects_only_its_shard() {
    let (server, store) = DynamoDbServer::with_table().await;
    let entries = (0..2).flat_map(|index| [lease(index, 7), position(index, "TRIM_HORIZON")]);
    store.exchange(&scope(), &asking(Some(adding(entries)), None)).await.unwrap();
    damage(&server, 0).await;
    let loaded = store.load_each(&scope()).await.unwrap();
    assert!(loaded[&shard(1)].is_ok());
    let refused = loaded[&shard(0)].as_ref().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreCorrupt);
    let item = format!("DynamoDB table kinestream, item position:{} of billing:orders", shard(0));
    assert!(refused.to_string().contains(&item), "{refused}");
    let refused = store.save(&scope(), &[(shard(0), after(1))]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreCorrupt, "it stays as it is");
    let table = store.table(&scope()).await.unwrap();
    let why = table.leases[&shard(0)].unreadable.clone().unwrap();
    assert!(why.contains(&item), "{why}");
    assert!(table.leases[&shard(1)].unreadable.is_none());
    let positions = vec![(shard(0), Checkpoint::ShardEnd)];
    store.edit(&scope(), &AdminEdit::Set { positions }, IfLeased::Force).await.unwrap();
    let shown = store.exchange(&scope(), &Exchange::default()).await.unwrap();
    let found = text_of(&shown, &EntryKey::Position(shard(0)));
    assert_eq!(found.as_deref(), Some("SHARD_END"));
}
