//! `kinestream`: reads, writes and inspects Amazon Kinesis Data Streams on the command line.
//!
//! Exit codes: 0 for success, also after a closed pipe, and of `tail`, `put` and `status APPLICATION`
//! after Ctrl-C; 1 for a failure, which is described on stderr; 2 for wrong arguments.
#![forbid(unsafe_code)]
#![allow(clippy::format_push_string, reason = "text is built for a screen, not for each record")]

mod arguments;
mod client;
mod confirm;
mod demo;
mod describe;
mod failure;
mod live;
mod nearest;
mod output;
mod payload;
mod position;
mod profile;
mod put;
mod quantity;
mod seek;
mod signals;
#[cfg(test)]
mod snapshot;
mod status;
mod store;
mod stream_arn;
mod streams;
mod table;
mod table_name;
mod tail;
mod time;

use std::process::ExitCode;
use std::time::Duration;

use arguments::{Arguments, Command};
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use failure::{Failure, Outcome};

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| without_passwords(error).exit());
    if let Err((name, message)) = arguments.check() {
        let mut command = Arguments::command();
        command.build();
        let subcommand = command.find_subcommand_mut(name);
        let kind = clap::error::ErrorKind::ValueValidation;
        subcommand.unwrap_or(&mut Arguments::command()).error(kind, message).exit();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::new(format!("cannot start the runtime: {error}"))),
    };
    let outcome = runtime.block_on(run(arguments));
    // A write to a pipe that is not read would otherwise keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn run(arguments: Arguments) -> Outcome<()> {
    let aws = arguments.aws;
    match arguments.command {
        Command::Tail(arguments) => tail::run(&arguments, &aws).await,
        Command::Put(arguments) => put::run(&arguments, &aws).await,
        Command::Streams(arguments) => streams::run(&arguments, &aws).await,
        Command::Describe(arguments) => describe::run(&arguments, &aws).await,
        Command::Status(arguments) => status::run(&arguments, &aws).await,
        Command::Seek(arguments) => seek::seek(&arguments, &aws).await,
        Command::Reset(arguments) => seek::reset(&arguments, &aws).await,
        Command::Completions { shell } => completions(shell),
    }
}

/// Replaces a refused text that may hold a password.
fn without_passwords(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && stream_arn::may_hold_password(text)
        {
            error.insert(kind, ContextValue::String("(a URL)".to_owned()));
            // The suggestions repeat the text.
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

fn completions(shell: clap_complete::Shell) -> Outcome<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "kinestream", &mut script);
    output::write_out(&script).map(drop)
}

fn report(failure: &Failure) -> ExitCode {
    output::say(&format!("{}\n", failure.shown(output::Paint::stderr())));
    ExitCode::FAILURE
}
