//! The store of an application's checkpoints.

use clap::Args;
use redis::{ConnectionAddr, IntoConnectionInfo};

/// The variable that names a Redis. The arguments of a program are visible to other users.
const VARIABLE: &str = "KINESTREAM_REDIS";

/// A Redis: one server, a cluster, or the master that sentinels report.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct Store {
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/ or rediss://… for TLS.
    /// Repeated: nodes of a Redis Cluster, of which one that answers is sufficient
    #[arg(long, value_name = "URL", env = VARIABLE, hide_env_values = true)]
    pub(crate) redis: Vec<String>,
    /// The URLs of --redis are sentinels, which report this master: its name, or a URL with the name
    /// as the host, such as redis://user:password@mymaster/
    #[arg(long, value_name = "NAME", requires = "redis")]
    pub(crate) sentinel_master: Option<String>,
}

impl Store {
    /// Returns true if an option names the Redis. The variable alone asks for nothing, since it may be
    /// set for other commands.
    pub(super) fn is_named_by_option(&self) -> bool {
        !self.redis.is_empty() && std::env::var_os(VARIABLE).is_none()
    }

    /// Returns the URL of the master that the sentinels report.
    pub(crate) fn master(&self) -> Option<String> {
        let master = self.sentinel_master.as_ref()?;
        Some(if master.contains("://") { master.clone() } else { format!("redis://{master}/") })
    }

    /// Refuses URLs that name no Redis. The text of a message leaves them out, since they may hold a
    /// password.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.redis.iter().any(|url| url.as_str().into_connection_info().is_err()) {
            return Err("--redis is no URL of a Redis, such as redis://127.0.0.1:6379/ or \
                        rediss://user:password@host:6379/0"
                .to_owned());
        }
        if !self.sentinel_master.as_deref().is_none_or(is_master) {
            return Err("--sentinel-master is no name such as mymaster, and no URL such as \
                        redis://user:password@mymaster/"
                .to_owned());
        }
        Ok(())
    }
}

/// Returns true for the name of a master, and for a URL with the name as the host.
fn is_master(text: &str) -> bool {
    if text.contains("://") {
        let master = text.into_connection_info();
        return master.is_ok_and(|master| {
            matches!(master.addr(), ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. })
        });
    }
    // Sentinel allows these characters in a name.
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn master_is_a_name_or_a_url() {
        let master = |text: &str| {
            let master = Some(text.to_owned());
            let store = Store { redis: vec!["redis://a/".to_owned()], sentinel_master: master };
            store.check().ok().and_then(|()| store.master())
        };
        assert_eq!(master("my-master_1.eu").as_deref(), Some("redis://my-master_1.eu/"));
        assert_eq!(master("rediss://:secret@main/2").as_deref(), Some("rediss://:secret@main/2"));
        for text in ["", "my master", "user:secret@main", "a/b", "http://a/", "unix:///run/redis"] {
            assert_eq!(master(text), None, "expected {text:?} to be refused");
        }
    }
}
