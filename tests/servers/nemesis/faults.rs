//! Faults of the network and the servers.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use super::redis::RedisServers;
use super::servers::{Deployment, Servers};
use super::worker::Worker;
use super::{LEASE, WORKERS};
use crate::proxy::{Mode, Proxy};
use crate::seeds::pick;

/// The workers that a network fault affects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope {
    All,
    One(usize),
}

/// The fate of the connections to a replaced master.
#[derive(Debug, Clone, Copy)]
pub(super) enum OldConnections {
    /// They stay open, and the old master answers on them as a replica.
    Open,
    /// They are closed.
    Closed,
    /// They become half open.
    HalfOpen,
}

/// A fault with its duration.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Open connections become half open. New ones work.
    HalfOpen(Scope),
    /// Open connections are closed.
    Cut(Scope),
    /// All bytes are dropped for this time. New connections are accepted.
    Swallow(Scope, Duration),
    /// All connections are closed, and new ones are closed at once, for this time.
    Refuse(Scope, Duration),
    /// Every response is delayed by the second duration, for the time of the first.
    Slow(Scope, Duration, Duration),
    /// The server closes the connections of all clients.
    ClientKill,
    /// The master's process is suspended for this time.
    Suspend(Duration),
    /// The master is killed, and restarts with its data after this time.
    Restart(Duration),
    /// The replica of Redis becomes the master. For this time, workers may still write to the old master,
    /// and the new one misses these writes.
    Failover(OldConnections, Duration),
    /// A script of another client of Redis loops for this time, and is then killed; or another
    /// client of PostgreSQL locks the table.
    Busy(Duration),
    /// One key of Redis disappears.
    LoseKey(&'static str),
    /// A backup of PostgreSQL is restored that is older by this time.
    Restore(Duration),
    /// All data disappears.
    LoseAll,
}

impl Fault {
    pub(super) fn draw(rng: &mut Rng, of: Deployment) -> Self {
        let scope = if rng.bool() { Scope::All } else { Scope::One(rng.usize(..WORKERS)) };
        let time = LEASE * rng.u32(1..8) / 4;
        let behind = |rng: &mut Rng| {
            if rng.bool() { Duration::ZERO } else { LEASE * rng.u32(1..4) / 4 }
        };
        match rng.u8(..16) {
            0 | 1 => Self::HalfOpen(scope),
            2 => Self::Cut(scope),
            3 | 4 => Self::Swallow(scope, time),
            5 => Self::Refuse(scope, time),
            6 => Self::Slow(scope, time, Duration::from_millis(rng.u64(100..1000))),
            7 => Self::ClientKill,
            8 => Self::Suspend(time),
            9 => Self::Restart(time),
            10..=12 if of == Deployment::Postgres => Self::Busy(time),
            13 | 14 if of == Deployment::Postgres => Self::Restore(behind(rng)),
            10..=12 => {
                let leftover = pick(
                    rng,
                    &[OldConnections::Open, OldConnections::Closed, OldConnections::HalfOpen],
                );
                Self::Failover(leftover, behind(rng))
            }
            13 | 14 => {
                let names = ["format", "checkpoints", "leases", "workers", "fleet"];
                Self::LoseKey(pick(rng, &names))
            }
            _ => Self::LoseAll,
        }
    }

    /// Returns true if every worker must report the loss of stored data.
    pub(super) fn loses_a_key(self) -> bool {
        matches!(self, Self::LoseKey(_) | Self::LoseAll)
    }

    /// Runs the fault from its start to its end.
    pub(super) async fn happen(self, servers: &mut Servers, workers: &[Worker]) {
        match self {
            Self::HalfOpen(scope) => {
                affected(scope, workers).for_each(Proxy::freeze);
            }
            Self::Cut(scope) => affected(scope, workers).for_each(Proxy::cut),
            Self::Swallow(scope, time) => set_mode_for(Mode::Swallow, scope, time, workers).await,
            Self::Refuse(scope, time) => set_mode_for(Mode::Refuse, scope, time, workers).await,
            Self::Slow(scope, time, delay) => {
                set_mode_for(Mode::Delay(delay), scope, time, workers).await;
            }
            Self::ClientKill => servers.close_connections().await,
            Self::Suspend(time) => servers.suspend(time).await,
            Self::Restart(time) => servers.restart(time).await,
            Self::Failover(leftover, behind) => {
                fail_over(leftover, behind, servers.redis(), workers).await;
            }
            Self::Busy(time) => servers.keep_busy(time).await,
            Self::LoseKey(name) => {
                let key = format!("kinestream:{{billing:orders}}:{name}");
                servers.redis().command(&["DEL", &key]).await;
            }
            Self::Restore(behind) => servers.postgres().restore(behind).await,
            Self::LoseAll => servers.lose_all().await,
        }
    }
}

/// Returns the proxies of the affected workers.
fn affected(scope: Scope, workers: &[Worker]) -> impl Iterator<Item = &Proxy> {
    let workers = workers.iter().enumerate().filter(move |(index, _)| match scope {
        Scope::One(one) => one == *index,
        Scope::All => true,
    });
    workers.flat_map(|(_, worker)| &worker.proxies)
}

async fn set_mode_for(mode: Mode, scope: Scope, time: Duration, workers: &[Worker]) {
    affected(scope, workers).for_each(|proxy| proxy.set_mode(mode));
    sleep(time).await;
    affected(scope, workers).for_each(|proxy| proxy.set_mode(Mode::Pass));
}

async fn fail_over(
    leftover: OldConnections,
    behind: Duration,
    servers: &mut RedisServers,
    workers: &[Worker],
) {
    servers.wait_for_the_replica().await;
    servers.promote().await;
    sleep(behind).await;
    for proxy in affected(Scope::All, workers) {
        if let Some(port) = servers.redirected_to() {
            proxy.redirect(port);
        }
        match leftover {
            OldConnections::Open => {}
            OldConnections::Closed => proxy.cut(),
            OldConnections::HalfOpen => proxy.freeze(),
        }
    }
    servers.demote_the_other().await;
}
