//! Runs the command.

use std::process::Stdio;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::ferrokinesis_server::{create_stream, start_kinesis};

/// The longest time that a command may take.
const TIME: Duration = Duration::from_secs(60);

/// A Kinesis on a port of this machine.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) port: u16,
}

impl Server {
    /// Starts ferrokinesis with a stream `orders`.
    pub(crate) async fn with_orders(shards: i32) -> Self {
        let (client, port) = start_kinesis().await.expect("expected a free port on 127.0.0.1");
        create_stream(&client, "orders", shards).await.unwrap();
        Self { client, port }
    }

    /// Runs the command with these words, and waits for its end.
    pub(crate) async fn run(&self, words: &str) -> Finished {
        run(&mut self.command(words), "").await
    }

    pub(crate) async fn run_with_input(&self, words: &str, input: &str) -> Finished {
        run(&mut self.command(words), input).await
    }

    /// Returns the command for this server.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = command(words);
        command.args(["--endpoint-url", &format!("http://127.0.0.1:{}", self.port)]);
        command
    }
}

/// Returns the command without any AWS configuration of this machine.
pub(crate) fn command(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinestream"));
    command
        .args(words.split_whitespace())
        .env_clear()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Asserts that the command succeeded, and returns the lines of its output.
    pub(crate) fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(0), "expected success: {self:#?}");
        self.stdout.lines().collect()
    }

    /// Asserts that the command failed with exit code 1, and returns its stderr.
    pub(crate) fn failure(&self) -> &str {
        assert_eq!(self.code, Some(1), "expected a failure: {self:#?}");
        &self.stderr
    }
}

pub(crate) async fn run(command: &mut Command, input: &str) -> Finished {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("expected the command to start");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    tokio::spawn(async move {
        // The command may end before it has read everything.
        let _written = stdin.write_all(input.as_bytes()).await;
    });
    let output = tokio::time::timeout(TIME, child.wait_with_output()).await;
    let output = output.expect("expected the command to end within a minute").unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
