//! The store of an application's checkpoints.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, Args, FromArgMatches};
use redis::{ConnectionAddr, IntoConnectionInfo};

use super::{Aws, values};
use crate::client::is_local;
use crate::table_name;

/// The variable that names a Redis. The arguments of a program are visible to other users.
const VARIABLE: &str = "KINESTREAM_REDIS";

/// The group of the options of which one names the store.
pub(super) const GROUP: &str = "store";

/// The options, as they are given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
#[group(skip)]
struct Options {
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/ or rediss://… for TLS.
    /// Repeated: nodes of a Redis Cluster, of which one that answers is sufficient
    #[arg(long, value_name = "URL", env = VARIABLE, hide_env_values = true)]
    redis: Vec<String>,
    /// The URLs of --redis are sentinels, which report this master: its name, or a URL with the name
    /// as the host, such as redis://user:password@mymaster/
    #[arg(long, value_name = "NAME", requires = "redis")]
    sentinel_master: Option<String>,
    /// The DynamoDB table of the application's checkpoints, by its name or its ARN. A table that is
    /// given by its name is in the region of the stream
    #[arg(long, value_name = "TABLE", value_parser = table_name::parse)]
    dynamodb: Option<String>,
    /// The lease table of a Kinesis Client Library (KCL) that holds the positions of the application,
    /// if its store is built with one
    #[arg(long, value_name = "TABLE", value_parser = table_name::parse, requires = "dynamodb")]
    kcl_table: Option<String>,
    /// Uses another DynamoDB endpoint, such as http://127.0.0.1:8000. --endpoint-url is that of
    /// Kinesis only
    #[arg(long, value_name = "URL", value_parser = values::endpoint, requires = "dynamodb")]
    dynamodb_endpoint_url: Option<String>,
}

/// The store that the options name.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Redis(Redis),
    DynamoDb(DynamoDb),
}

/// A Redis: one server, a cluster, or the master that sentinels report.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    pub(crate) urls: Vec<String>,
    sentinel_master: Option<String>,
    /// True if no option names it.
    is_of_variable: bool,
}

/// A table of DynamoDB.
#[derive(Debug, Clone)]
pub(crate) struct DynamoDb {
    /// Its name or its ARN.
    pub(crate) table: String,
    pub(crate) kcl_table: Option<String>,
    pub(crate) endpoint_url: Option<String>,
}

impl FromArgMatches for Store {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let options = Options::from_arg_matches(matches)?;
        let is_of_variable = matches.value_source("redis") == Some(ValueSource::EnvVariable);
        let redis = |options: Options| {
            Self::Redis(Redis {
                urls: options.redis,
                sentinel_master: options.sentinel_master,
                is_of_variable,
            })
        };
        match options.dynamodb {
            None => Ok(redis(options)),
            // The variable may be set for other commands.
            Some(table) if options.redis.is_empty() || is_of_variable => {
                if options.sentinel_master.is_some() {
                    return Err(conflict("--sentinel-master"));
                }
                let Options { kcl_table, dynamodb_endpoint_url: endpoint_url, .. } = options;
                Ok(Self::DynamoDb(DynamoDb { table, kcl_table, endpoint_url }))
            }
            Some(_) => Err(conflict("--redis")),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn conflict(option: &str) -> clap::Error {
    let message = format!("{option} and --dynamodb name different stores; pass one of them");
    clap::Error::raw(ErrorKind::ArgumentConflict, message)
}

impl Args for Store {
    fn group_id() -> Option<clap::Id> {
        Some(GROUP.into())
    }

    fn augment_args(command: clap::Command) -> clap::Command {
        let group = ArgGroup::new(GROUP).args(["redis", "dynamodb"]).multiple(true);
        Options::augment_args(command).group(group)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl Store {
    /// Returns true if an option names the store. The variable alone asks for nothing, since it may be
    /// set for other commands.
    pub(super) fn is_named_by_option(&self) -> bool {
        !matches!(self, Self::Redis(Redis { is_of_variable: true, .. }))
    }

    /// Refuses values that name no store. The text of a message leaves them out, since they may hold a
    /// password.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Redis(redis) => redis.check(),
            Self::DynamoDb(table) => table.check(),
        }
    }

    /// Refuses a Kinesis of this machine with a DynamoDB of AWS, and the reverse: an endpoint that was
    /// forgotten. `of_variable` returns the one of a service that a variable of the SDK names.
    pub(super) fn check_endpoints(
        &self,
        aws: &Aws,
        of_variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let Self::DynamoDb(DynamoDb { endpoint_url, .. }) = self else { return Ok(()) };
        let kinesis = aws.endpoint_url.clone().or_else(|| of_variable("KINESIS"));
        let dynamodb = endpoint_url.clone().or_else(|| of_variable("DYNAMODB"));
        let (here, other, option) = match (kinesis, dynamodb) {
            (Some(kinesis), None) if is_local(&kinesis) => {
                ("Kinesis", "DynamoDB", "--dynamodb-endpoint-url")
            }
            (None, Some(dynamodb)) if is_local(&dynamodb) => {
                ("DynamoDB", "Kinesis", "--endpoint-url")
            }
            _ => return Ok(()),
        };
        Err(format!(
            "{here} is on this machine, and {other} would be that of AWS; pass {option} as well"
        ))
    }
}

impl Redis {
    /// Returns the URL of the master that the sentinels report.
    pub(crate) fn master(&self) -> Option<String> {
        let master = self.sentinel_master.as_ref()?;
        Some(if master.contains("://") { master.clone() } else { format!("redis://{master}/") })
    }

    fn check(&self) -> Result<(), String> {
        if self.urls.iter().any(|url| url.as_str().into_connection_info().is_err()) {
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

impl DynamoDb {
    /// Returns the region in an ARN of the tables; `None` if both are given by their names.
    pub(crate) fn region(&self) -> Option<&str> {
        let tables = [Some(&self.table), self.kcl_table.as_ref()];
        tables.into_iter().flatten().find_map(|table| table_name::region(table))
    }

    fn check(&self) -> Result<(), String> {
        let region = self.region();
        let of_kcl = self.kcl_table.as_deref().and_then(table_name::region);
        if of_kcl.is_some() && of_kcl != region {
            return Err("--dynamodb and --kcl-table are tables of different regions".to_owned());
        }
        if self.kcl_table.as_ref() == Some(&self.table) {
            return Err("--dynamodb and --kcl-table are one table; --dynamodb is that of the \
                        store, and --kcl-table the lease table of the KCL"
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
            let sentinel_master = Some(text.to_owned());
            let urls = vec!["redis://a/".to_owned()];
            let redis = Redis { urls, sentinel_master, is_of_variable: false };
            redis.check().ok().and_then(|()| redis.master())
        };
        assert_eq!(master("my-master_1.eu").as_deref(), Some("redis://my-master_1.eu/"));
        assert_eq!(master("rediss://:secret@main/2").as_deref(), Some("rediss://:secret@main/2"));
        for text in ["", "my master", "user:secret@main", "a/b", "http://a/", "unix:///run/redis"] {
            assert_eq!(master(text), None, "expected {text:?} to be refused");
        }
    }

    fn table(table: &str, kcl_table: Option<&str>, endpoint_url: Option<&str>) -> DynamoDb {
        let [kcl_table, endpoint_url] = [kcl_table, endpoint_url].map(|it| it.map(str::to_owned));
        DynamoDb { table: table.to_owned(), kcl_table, endpoint_url }
    }

    #[test]
    fn region_of_a_table_is_that_of_an_arn() {
        let arn = |region: &str| format!("arn:aws:dynamodb:{region}:123456789012:table/leases");
        let (here, there) = (arn("eu-west-1"), arn("us-east-1"));
        for (first, second, region) in [
            ("kinestream", None, None),
            (&*here, None, Some("eu-west-1")),
            (&*here, Some("leases"), Some("eu-west-1")),
            ("kinestream", Some(&*there), Some("us-east-1")),
        ] {
            let table = table(first, second, None);
            assert_eq!((table.region(), table.check()), (region, Ok(())), "{table:?}");
        }
        for second in [&*there, &*here] {
            assert!(table(&here, Some(second), None).check().is_err(), "{second}");
        }
    }

    #[test]
    fn endpoint_of_one_service_on_this_machine_needs_that_of_the_other() {
        let local = Some("http://127.0.0.1:4567");
        let remote = Some("https://example.com");
        for (kinesis, dynamodb, variable, is_accepted) in [
            (None, None, "", true),
            (local, local, "", true),
            (local, remote, "", true),
            (remote, None, "", true),
            (None, remote, "", true),
            (local, None, "", false),
            (local, None, "KINESIS", false),
            (local, None, "DYNAMODB", true),
            (None, local, "", false),
            (None, local, "DYNAMODB", false),
            (None, local, "KINESIS", true),
            (None, None, "KINESIS", false),
            (None, None, "DYNAMODB", false),
            (remote, None, "KINESIS", true),
        ] {
            let aws = Aws { endpoint_url: kinesis.map(str::to_owned), ..Aws::default() };
            let store = Store::DynamoDb(table("kinestream", None, dynamodb));
            let checked = store.check_endpoints(&aws, |service| {
                local.filter(|_| service == variable).map(str::to_owned)
            });
            assert_eq!(checked.is_ok(), is_accepted, "{kinesis:?} {dynamodb:?} {variable}");
        }
    }
}
