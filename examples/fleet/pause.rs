//! A process that suspends another process and always resumes it.
//!
//! A suspended process cannot notice that its parent has exited, and would stay forever. So a
//! separate process, which can notice it, suspends and resumes it.

use std::error::Error;
use std::io;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// Runs the pauser: suspends a process for `time`, or until standard input ends.
pub(crate) fn pause(process: u32, time: Duration) -> Result<(), Box<dyn Error>> {
    let signal = |name: &str| Command::new("kill").args([name, &process.to_string()]).status();
    let (sender, input_end) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _until_it_ends = io::copy(&mut io::stdin(), &mut io::sink());
        drop(sender);
    });
    let stopped = signal("-STOP");
    if stopped.is_ok() {
        let _time_or_end = input_end.recv_timeout(time);
    }
    signal("-CONT")?;
    stopped?;
    Ok(())
}
