//! The command in a pseudo-terminal.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use crate::run::Server;

/// The longest time that a screen may take to appear.
const TIME: Duration = Duration::from_secs(30);

/// The command and its terminal.
struct Terminal {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    keyboard: Box<dyn Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
    /// All bytes that the command has written.
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(words: &str, (rows, cols): (u16, u16), variables: &[(&str, &str)]) -> Self {
        let pair = native_pty_system().openpty(size(rows, cols)).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_kinestream"));
        command.args(words.split_whitespace());
        command.env_clear();
        command.env("TERM", "xterm-256color");
        for (name, value) in variables {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).unwrap();
        let mut output = pair.master.try_clone_reader().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, cols, 1000)));
        let shown = Arc::clone(&screen);
        let written = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().process(&buffer[..length]);
                kept.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        let keyboard = pair.master.take_writer().unwrap();
        Self { child, master: pair.master, keyboard, screen, written }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits for the expected screen.
    fn wait_for(&self, what: &str, is_shown: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let text = self.text();
            if is_shown(&text) {
                return text;
            }
            assert!(began.elapsed() < TIME, "expected {what}; the screen shows:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn resize(&self, rows: u16, cols: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(rows, cols);
        self.master.resize(size(rows, cols)).unwrap();
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the end of the command, and returns its exit code.
    fn exit_code(&mut self) -> u32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(began.elapsed() < TIME, "expected an end; the screen shows:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The command has ended, unless the test has failed.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}

/// Returns the lines of the footer: the headings, the shards, and the total.
fn footer(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let begin = lines.iter().rposition(|line| line.starts_with("shard ")).unwrap_or(lines.len());
    lines[begin..].to_vec()
}

fn has_footer(text: &str) -> bool {
    let footer = footer(text);
    footer.len() > 3 && footer.last().is_some_and(|line| line.starts_with("caught up  "))
}

#[test]
fn footer_follows_the_records_and_ctrl_c_leaves_a_summary() {
    let mut terminal = Terminal::start("tail --demo", (30, 100), &[]);
    let text = terminal
        .wait_for("a footer below records", |text| has_footer(text) && text.contains("customer-"));
    assert!(text.starts_with("SHARD ARRIVAL                  KEY DATA\n"), "{text}");
    assert_eq!(footer(&text)[0], "shard  records/s     records  lag", "{text}");
    terminal.press(b"\x03");
    assert_eq!(terminal.exit_code(), 0);
    let text = terminal.wait_for("a summary", |text| text.contains(" s, caught up"));
    assert!(!has_footer(&text), "expected no footer after the end:\n{text}");
    assert!(!text.contains("records/s"), "expected no remains of the footer:\n{text}");
}

#[test]
fn footer_follows_the_size_of_the_terminal() {
    let mut terminal = Terminal::start("tail --demo --since 10m", (30, 100), &[]);
    terminal.wait_for("a footer", has_footer);
    terminal.resize(12, 40);
    terminal.wait_for("a narrow footer", |text| {
        footer(text).first().is_some_and(|line| *line == "shard  records/s  lag")
    });
    terminal.resize(40, 120);
    let text = terminal.wait_for("a wide footer", |text| {
        footer(text).first().is_some_and(|line| *line == "shard  records/s     records  lag")
            && has_footer(text)
    });
    assert_eq!(text.matches("records/s").count(), 1, "expected one footer:\n{text}");
    terminal.press(b"\x03");
    assert_eq!(terminal.exit_code(), 0);
}

#[test]
fn colours_follow_the_terminal_and_no_color() {
    for (variables, is_colourful) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let mut terminal = Terminal::start("tail --demo --since 1h -n 5", (30, 100), variables);
        assert_eq!(terminal.exit_code(), 0);
        terminal.wait_for("a summary", |text| text.contains("5 records ("));
        let screen = terminal.screen.lock().unwrap();
        let cell = screen.screen().cell(1, 4).unwrap();
        assert_eq!(cell.fgcolor() != vt100::Color::Default, is_colourful, "{cell:?}");
    }
}

#[test]
fn dumb_terminal_gets_no_control_codes() {
    let variables = [("TERM", "dumb")];
    let mut terminal = Terminal::start("tail --demo --since 1h -n 5", (30, 100), &variables);
    assert_eq!(terminal.exit_code(), 0);
    let text = terminal.wait_for("a summary", |text| text.contains("5 records ("));
    assert!(text.starts_with("SHARD ARRIVAL"), "{text}");
    let written = terminal.written.lock().unwrap();
    assert!(!written.contains(&0x1b), "{:?}", String::from_utf8_lossy(&written));
}

#[test]
fn narrow_terminal_shows_records_above_a_footer() {
    let mut terminal = Terminal::start("tail --demo --since 10m", (12, 20), &[]);
    let text = terminal.wait_for("a footer", |text| {
        footer(text).first() == Some(&"shard  lag") && text.contains("caught up")
    });
    assert!(footer(&text).len() <= 6, "expected records above the footer:\n{text}");
    terminal.press(b"\x03");
    assert_eq!(terminal.exit_code(), 0);
}

// The test blocks one thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_cut_to_the_terminal() {
    let server = Server::with_orders(1).await;
    let endpoint = format!("--endpoint-url http://127.0.0.1:{}", server.port);
    for words in ["streams", "describe orders"] {
        let mut terminal = Terminal::start(&format!("{words} {endpoint}"), (30, 20), &[]);
        assert_eq!(terminal.exit_code(), 0);
        let text = terminal.wait_for("the stream", |text| text.contains("orders"));
        // A line that was cut has the mark as its last column.
        assert!(
            text.lines().any(|line| line.chars().count() == 20 && line.ends_with('…')),
            "{text}"
        );
        assert!(text.lines().all(|line| !line.starts_with("provisioned")), "{text}");
    }
}

// The test blocks one thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_shown_while_no_record_is_found() {
    let server = Server::with_orders(1).await;
    let words = format!("tail orders --last 3 --endpoint-url http://127.0.0.1:{}", server.port);
    let mut terminal = Terminal::start(&words, (10, 100), &[]);
    terminal.wait_for("progress", |text| text.contains("reading back 4 s: 0 records read, 0 of 3"));
    terminal.press(b"\x03");
    assert_eq!(terminal.exit_code(), 0);
}
