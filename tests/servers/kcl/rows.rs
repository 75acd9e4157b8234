//! Single rows: of ended shards, those that cannot be read, and those of other streams.

use std::time::Duration;

use futures::StreamExt;
use kinestream::store::lease::{
    FencedSave, HeartbeatRequest, HeartbeatResponse, LeaseStore, Membership,
};
use kinestream::store::{CheckpointStore, Scope};
use kinestream::{Checkpoint, Consumer, ErrorKind, IfLeased};
use tokio::time::{sleep, timeout};

use super::fake::{FakeKcl, Version};
use super::requests::{Item, Lease};
use super::world::{LEASE, LIMIT, World, row, string};
use crate::dynamodb_faults::{adding, asking, lease};
use crate::lease_access::LeaseAccess;
use crate::redis_refusals::Log;
use crate::redis_store::{scope, shard};

#[tokio::test]
async fn kcl_reads_the_children_of_a_shard_that_this_crate_has_ended() {
    let world = World::new(1).await;
    let fleet = world.start(1);
    let root = world.stream.shard(0);
    sleep(Duration::from_secs(1)).await;
    world.ledger.put(&root, 1);
    let [left, right] = root.split();
    timeout(LIMIT, async {
        while !world.table.scan().await.iter().any(Lease::is_ended) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("expected the end of the parent");
    fleet.close().await;
    let rows = world.table.scan().await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|row| row.owner.is_none()), "expected released rows: {rows:?}");
    let parent = rows.iter().find(|row| row.key == root.id().as_str()).unwrap();
    let mut children = parent.children.clone();
    children.sort();
    assert_eq!(children, [left.id().to_string(), right.id().to_string()]);
    world.ledger.put(&left, 1);
    world.ledger.put(&right, 1);
    let _kcl = FakeKcl::start(Version::Three, 1, &world.table, &world.kinesis, &world.ledger);
    world.drain(LIMIT).await;
}

#[tokio::test]
async fn unreadable_row_is_reported_and_left_as_it_is_until_a_position_is_set() {
    let world = World::new(2).await;
    let [good, bad] = [0, 1].map(|index| world.stream.shard(index));
    world.put_row(row(good.id().as_str(), "TRIM_HORIZON")).await;
    let mut damaged = row(bad.id().as_str(), "AT_TIMESTAMP");
    damaged.insert("later".to_owned(), string("kept"));
    world.put_row(damaged.clone()).await;
    good.put("good");
    bad.put("bad");
    let consumer = world.consumer().build().unwrap();
    let mut records = consumer.records();
    let (mut delivered, mut errors) = (Vec::new(), Vec::new());
    while delivered.len() + errors.len() < 2 {
        match timeout(LIMIT, records.next()).await.unwrap().unwrap() {
            Ok(record) => delivered.push(record.data().to_vec()),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(delivered, [b"good"]);
    assert_eq!(errors[0].kind(), ErrorKind::StoreCorrupt);
    let said = errors[0].to_string();
    assert!(said.contains("KCL table leases") && said.contains("AT_TIMESTAMP"), "{said}");
    let now = world.row(bad.id().as_str()).await.unwrap();
    for name in ["checkpoint", "leaseCounter", "later"] {
        assert_eq!(now.get(name), damaged.get(name), "{name}");
    }
    consumer.set_position(&bad.id(), Checkpoint::TrimHorizon, IfLeased::Refuse).await.unwrap();
    let record = timeout(LIMIT, records.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.data(), b"bad");
    assert_eq!(world.row(bad.id().as_str()).await.unwrap()["later"], string("kept"));
}

#[tokio::test]
async fn rows_of_other_kinds_and_streams_stay_as_they_are() {
    let world = World::new(1).await;
    let id = world.stream.shard(0).id();
    let key = |stream: &str| format!("123456789012:{stream}:1700000000:{id}");
    // With the same shard, finished, before and after the row of this stream in any order.
    let others = ["alpha", "payments", "zeta"].map(|name| row(&key(name), "SHARD_END"));
    let mut leader = Item::from([("leaseKey".to_owned(), string("Leader"))]);
    leader.insert("entityType".to_owned(), string("LEADER"));
    let own = [row(&key("orders"), "TRIM_HORIZON"), leader.clone()];
    for item in own.iter().chain(&others) {
        world.put_row(item.clone()).await;
    }
    world.stream.shard(0).put("first");
    assert_eq!(world.delivered(Duration::from_secs(3)).await, ["first"]);
    for other in others {
        let name = other["leaseKey"].as_s().unwrap();
        assert_eq!(world.row(name).await.as_ref(), Some(&other));
    }
    assert_eq!(world.row("Leader").await, Some(leader));
    let moved = world.row(&key("orders")).await.unwrap();
    assert_ne!(moved["checkpoint"], string("TRIM_HORIZON"), "{moved:?}");
    assert_eq!(world.row(id.as_str()).await, None, "no row of a single stream is added");
}

#[tokio::test]
async fn consumer_by_arn_continues_in_the_rows_of_the_name() {
    let world = World::new(1).await;
    let shard = world.stream.shard(0);
    world.put_row(row(shard.id().as_str(), "TRIM_HORIZON")).await;
    shard.put("first");
    assert_eq!(world.delivered(Duration::from_secs(3)).await, ["first"]);
    shard.put("second");
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    let by_arn = Consumer::builder(world.kinesis.client(), arn).application("billing");
    let consumer = by_arn.store(world.store()).lease_duration(LEASE).build().unwrap();
    let record = timeout(LIMIT, consumer.records().next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.data(), b"second");
    consumer.close().await.unwrap();
    assert_eq!(world.table.scan().await.len(), 1, "a mark of the migration is no row");
}

#[tokio::test]
async fn rows_of_another_application_are_refused() {
    let world = World::new(1).await;
    assert_eq!(world.delivered(Duration::from_secs(2)).await, [""; 0]);
    let consumer = world.consumer().application("another").build().unwrap();
    let error = timeout(LIMIT, consumer.records().next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("belongs to billing:orders"), "{error}");
}

/// An operator who takes the migration for finished may remove the lease table from the program.
#[tokio::test]
async fn store_with_the_positions_elsewhere_is_refused() {
    let world = World::new(1).await;
    world.stream.shard(0).put("first");
    world.put_row(row(world.stream.shard(0).id().as_str(), "TRIM_HORIZON")).await;
    assert_eq!(world.delivered(Duration::from_secs(3)).await, ["first"]);
    for is_reverse in [false, true] {
        let application = if is_reverse { "own" } else { "billing" };
        if is_reverse {
            let own = world.consumer().application(application).store(world.server.store());
            let own = own.build().unwrap();
            let mut records = own.records();
            assert!(timeout(Duration::from_secs(2), records.next()).await.is_err(), "no record");
            own.close().await.unwrap();
        }
        let store = if is_reverse { world.store() } else { world.server.store() };
        let consumer = world.consumer().application(application).store(store).build().unwrap();
        let error = timeout(LIMIT, consumer.records().next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        assert!(error.to_string().contains("kcl_table"), "{error}");
    }
}

#[tokio::test]
async fn streams_of_two_accounts_in_one_table_stay_apart() {
    let world = World::new(1).await;
    let id = world.stream.shard(0).id();
    let accounts = ["111111111111", "222222222222"];
    let key = |account: &str| format!("{account}:orders:1700000000:{id}");
    for account in accounts {
        world.put_row(row(&key(account), "TRIM_HORIZON")).await;
    }
    let store = world.store();
    let scopes = accounts.map(|account| {
        Scope::new("billing", format!("arn:aws:kinesis:eu-west-1:{account}:stream/orders"))
    });
    for scope in &scopes {
        assert_eq!(store.load(scope).await.unwrap()[&id], Checkpoint::TrimHorizon);
    }
    store.save(&scopes[0], &[(id.clone(), Checkpoint::ShardEnd)]).await.unwrap();
    assert_eq!(store.load(&scopes[1]).await.unwrap()[&id], Checkpoint::TrimHorizon);
    assert_eq!(store.load(&scopes[0]).await.unwrap()[&id], Checkpoint::ShardEnd);
}

/// A worker that starts after a crash replaces the entry of its name, and adds none.
#[tokio::test]
async fn worker_of_a_known_name_waits_for_a_kcl_as_well() {
    const SHORT: Duration = Duration::from_millis(300);
    let world = World::new(1).await;
    let store = world.store();
    store.heartbeat(&scope(), &HeartbeatRequest::new("one", 1, SHORT)).await.unwrap();
    let mut held = row(world.stream.shard(0).id().as_str(), "TRIM_HORIZON");
    held.insert("leaseOwner".to_owned(), string("kcl-7"));
    world.put_row(held).await;
    let (leases, request) = (store.leases_of(&scope()), HeartbeatRequest::new("one", 2, SHORT));
    for _ in 0..20 {
        let lease = world.table.scan().await.remove(0);
        assert!(world.table.renew(&lease, false).await);
        match leases.exchange(&request).await {
            Ok(response) => assert_eq!(response.membership, Membership::Occupied),
            Err(error) => assert!(error.to_string().contains("kcl-7"), "{error}"),
        }
        sleep(SHORT / 3).await;
    }
    timeout(LIMIT, async {
        let joined = |response: HeartbeatResponse| response.membership == Membership::Joined;
        while !leases.exchange(&request).await.is_ok_and(joined) {
            sleep(SHORT / 3).await;
        }
    })
    .await
    .expect("expected to join once the KCL has stopped");
}

#[tokio::test]
async fn lease_that_a_save_takes_back_from_a_kcl_is_logged() {
    let world = World::new(1).await;
    world.put_row(row(shard(0).as_str(), "TRIM_HORIZON")).await;
    let (store, place) = (world.store(), scope());
    let claim = asking(Some(adding([lease(0, 7)])), None);
    assert!(store.exchange(&place, &claim).await.unwrap().is_made);
    let (log, _until_here) = Log::begin();
    for (expected, text) in [("TRIM_HORIZON", "AT_TIMESTAMP:1"), ("AT_TIMESTAMP:1", "SHARD_END")] {
        let save = FencedSave::new(shard(0), 7, Some(expected.into()), text);
        assert!(store.save_fenced(&place, &[save]).await.unwrap()[0].is_saved);
        let row = world.table.scan().await.remove(0);
        assert_eq!(row.owner.as_deref(), Some("one"));
        let logged = log.text();
        if text == "AT_TIMESTAMP:1" {
            assert_eq!(logged, "", "no KCL has taken it");
            assert!(world.table.take(&row, "kcl-7").await);
        } else {
            assert!(logged.contains("WARN") && logged.contains("stop the KCL"), "{logged}");
            assert!(logged.contains("kcl-7") && logged.contains(&row.key), "{logged}");
        }
    }
}
