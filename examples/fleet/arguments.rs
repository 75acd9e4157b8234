//! The command-line arguments: either run the demonstration or be one of its child processes.

use std::path::PathBuf;
use std::time::Duration;

pub(crate) const USAGE: &str = "\
usage: fleet [--seconds N] [--workers N] [--shards N]

  --seconds N   duration of the demonstration, 10 to 3600; each event may extend it (default 75)
  --workers N   number of workers after all have joined, 2 to 20 (default 3)
  --shards N    initial number of shards, 1 to 100 (default 12)";

/// The role of a process.
pub(crate) enum Role {
    Help,
    /// The demonstration. It starts the processes of the other roles.
    Story(Options),
    Worker {
        kinesis_port: u16,
        redis_url: String,
        name: String,
    },
    Pauser {
        process: u32,
        time: Duration,
    },
    RedisSupervisor {
        port: u16,
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seconds: u32,
    pub(crate) workers: u32,
    pub(crate) shards: u32,
}

impl Role {
    pub(crate) fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, String> {
        let mut options = Options { seconds: 75, workers: 3, shards: 12 };
        while let Some(argument) = arguments.next() {
            let mut next = || arguments.next().ok_or_else(|| missing(&argument));
            let (option, allowed) = match argument.as_str() {
                "worker" => {
                    let kinesis_port = parsed(&argument, &next()?)?;
                    return Ok(Self::Worker { kinesis_port, redis_url: next()?, name: next()? });
                }
                "pauser" => {
                    let process = parsed(&argument, &next()?)?;
                    let time = Duration::from_secs(parsed(&argument, &next()?)?);
                    return Ok(Self::Pauser { process, time });
                }
                "redis-supervisor" => {
                    let port = parsed(&argument, &next()?)?;
                    return Ok(Self::RedisSupervisor { port, folder: next()?.into() });
                }
                "--help" | "-h" => return Ok(Self::Help),
                "--seconds" => (&mut options.seconds, 10..=3600),
                "--workers" => (&mut options.workers, 2..=20),
                "--shards" => (&mut options.shards, 1..=100),
                _ => return Err(format!("unknown argument {argument:?}\n\n{USAGE}")),
            };
            *option = parsed(&argument, &next()?)?;
            if !allowed.contains(option) {
                let (least, most) = allowed.into_inner();
                return Err(format!("{argument} is {option}, but must be {least} to {most}"));
            }
        }
        Ok(Self::Story(options))
    }
}

fn missing(argument: &str) -> String {
    format!("{argument} needs a value\n\n{USAGE}")
}

fn parsed<T: std::str::FromStr>(argument: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{argument} needs a number, not {value:?}"))
}
