//! An application moves between a KCL and this crate, under load and while shards split and merge.

use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::fake::{FAILOVER, FakeKcl, Version};
use super::requests::Lease;
use super::watch::Watch;
use super::world::{Fleet, LEASE, World};

/// The time in which everything that is left is processed by the last reader.
const DRAIN: Duration = Duration::from_secs(40);

/// Puts records, and splits and merges shards, until it is ended.
fn load(world: &World, mut random: Rng) -> JoinHandle<()> {
    let (stream, ledger) = (world.stream.clone(), world.ledger.clone());
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(random.u64(1..8))).await;
            ledger.put_somewhere(&stream, &mut random);
            if random.u16(..700) == 0 {
                let open = stream.open_shards();
                match open.windows(2).next() {
                    Some([one, other]) if open.len() > 3 => drop(one.merge(other)),
                    _ => drop(open[random.usize(..open.len())].split()),
                }
            }
        }
    })
}

enum Reader {
    Kcl(FakeKcl),
    Own(Fleet),
}

impl Reader {
    /// Stops the reader, with or without a last save.
    async fn end(self, is_orderly: bool) {
        match (self, is_orderly) {
            (Self::Kcl(kcl), true) => {
                kcl.assert_alive();
                kcl.stop().await;
            }
            (Self::Kcl(kcl), false) => kcl.kill().await,
            (Self::Own(fleet), true) => fleet.close().await,
            (Self::Own(fleet), false) => fleet.kill().await,
        }
    }
}

/// Moves an application both ways at random moments, and checks that no record is passed over.
async fn move_to_and_fro(version: Version, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let world = World::new(3).await;
    let watch = Watch::start(&world.table);
    let kcl = |world: &World| {
        Reader::Kcl(FakeKcl::start(version, 2, &world.table, &world.kinesis, &world.ledger))
    };
    let mut reader = kcl(&world);
    // The KCL starts at the oldest record, so every record counts.
    let load = load(&world, random.fork());
    for phase in 0..6 {
        sleep(Duration::from_millis(random.u64(1500..5000))).await;
        reader.end(random.u8(..3) > 0).await;
        // The next one starts at once, or after the leases have expired.
        sleep(Duration::from_millis(random.u64(..2) * random.u64(..2000))).await;
        reader = if phase % 2 == 0 { Reader::Own(world.start(2)) } else { kcl(&world) };
    }
    sleep(Duration::from_secs(3)).await;
    load.abort();
    world.drain(DRAIN).await;
    reader.end(true).await;
    watch.end().await;
    let (count, repeats) = (world.ledger.len(), world.ledger.repeats());
    eprintln!("{version:?}, seed {seed}: {count} records, {repeats} repeats");
}

fn seeds() -> Vec<u64> {
    let seeds = std::env::var("KCL_SEEDS").unwrap_or_else(|_| "1..2".to_owned());
    let (first, last) = seeds.split_once("..").unwrap();
    (first.parse().unwrap()..last.parse().unwrap()).collect()
}

#[tokio::test]
async fn application_moves_from_kcl_1_and_back_at_any_moment() {
    for seed in seeds() {
        move_to_and_fro(Version::One, seed).await;
    }
}

#[tokio::test]
async fn application_moves_from_kcl_2_and_back_at_any_moment() {
    for seed in seeds() {
        move_to_and_fro(Version::Two, seed).await;
    }
}

#[tokio::test]
async fn application_moves_from_kcl_3_and_back_at_any_moment() {
    for seed in seeds() {
        move_to_and_fro(Version::Three, seed).await;
    }
}

#[tokio::test]
async fn orderly_moves_repeat_no_record() {
    for version in [Version::Two, Version::Three] {
        let world = World::new(2).await;
        let watch = Watch::start(&world.table);
        let mut random = Rng::with_seed(7);
        for round in 0..3 {
            let kcl = FakeKcl::start(version, 1, &world.table, &world.kinesis, &world.ledger);
            for _ in 0..40 {
                world.ledger.put_somewhere(&world.stream, &mut random);
            }
            if round == 1 {
                world.stream.open_shards()[0].split();
            }
            world.drain(DRAIN).await;
            kcl.stop().await;
            let fleet = world.start(1);
            for _ in 0..40 {
                world.ledger.put_somewhere(&world.stream, &mut random);
            }
            if round == 0 {
                world.stream.open_shards()[1].split();
            }
            // An aggregated record is the last one, of which a KCL must not read a part again.
            for shard in world.stream.open_shards() {
                world.ledger.put(&shard, 3);
            }
            world.drain(DRAIN).await;
            fleet.close().await;
        }
        watch.end().await;
        assert_eq!(world.ledger.repeats(), 0, "expected no repeats after orderly stops");
    }
}

#[tokio::test]
async fn reading_begins_once_a_kcl_has_stopped_to_renew() {
    for version in [Version::Two, Version::Three] {
        let world = World::new(2).await;
        let kcl = FakeKcl::start(version, 2, &world.table, &world.kinesis, &world.ledger);
        sleep(3 * FAILOVER).await;
        let fleet = world.start(2);
        sleep(2 * LEASE).await;
        let rows = world.table.scan().await;
        assert!(!rows.is_empty() && rows.iter().all(|row| row.epoch.is_none()), "{rows:?}");
        kcl.kill().await;
        let stopped = Instant::now();
        let mut random = Rng::with_seed(1);
        for _ in 0..20 {
            world.ledger.put_somewhere(&world.stream, &mut random);
        }
        world.drain(DRAIN).await;
        let pause = stopped.elapsed();
        eprintln!("{version:?}: read {pause:?} after the KCL was killed");
        assert!(pause < 3 * LEASE, "expected to read after one lease duration, not {pause:?}");
        fleet.close().await;
    }
}

#[tokio::test]
async fn kcl_that_is_started_by_mistake_costs_no_record() {
    for version in [Version::One, Version::Two, Version::Three] {
        let world = World::new(3).await;
        let kcl = FakeKcl::start(version, 1, &world.table, &world.kinesis, &world.ledger);
        let watch = Watch::start(&world.table);
        let load = load(&world, Rng::with_seed(3));
        sleep(Duration::from_secs(2)).await;
        kcl.stop().await;
        let fleet = world.start(2);
        sleep(2 * LEASE).await;
        let intruder = FakeKcl::start(version, 1, &world.table, &world.kinesis, &world.ledger);
        sleep(Duration::from_secs(2)).await;
        // Without new records nothing is saved, and the KCL takes the leases for expired.
        load.abort();
        let is_back = |row: &Lease| row.owner == row.claimed_by || row.is_ended();
        world.wait_until("the KCL takes leases", |rows| !rows.iter().all(is_back)).await;
        let load = self::load(&world, Rng::with_seed(4));
        sleep(Duration::from_secs(4)).await;
        intruder.assert_alive();
        let is_orderly = version == Version::Two;
        Reader::Kcl(intruder).end(is_orderly).await;
        sleep(Duration::from_secs(2)).await;
        load.abort();
        world.drain(DRAIN).await;
        world
            .wait_until("the next saves have the rows back", |rows| rows.iter().all(is_back))
            .await;
        fleet.close().await;
        watch.end().await;
        let (count, repeats) = (world.ledger.len(), world.ledger.repeats());
        eprintln!("{version:?} beside this crate: {count} records, {repeats} repeats");
    }
}
