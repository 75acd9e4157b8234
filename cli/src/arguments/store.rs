//! The store of an application's checkpoints.

use clap::Args;

use super::values::master;

/// A Redis: one server, a cluster, or the master that sentinels report.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct Store {
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/ or rediss://… for TLS.
    /// Repeated: nodes of a Redis Cluster, of which one that answers is sufficient
    #[arg(long, value_name = "URL")]
    pub(crate) redis: Vec<String>,
    /// The URLs of --redis are sentinels, which report this master: its name, or a URL with the name
    /// as the host, such as redis://user:password@mymaster/
    #[arg(long, value_name = "NAME", value_parser = master, requires = "redis")]
    pub(crate) sentinel_master: Option<String>,
}
