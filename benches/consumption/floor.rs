//! The floor: the least that a program can do to read all records. One thread reads the unsigned
//! CBOR responses of one connection from a blocking socket into one buffer, and counts the records.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;

use serde_json::{Value, json};

use crate::canned::CBOR;
use crate::subject::{Cost, Measuring, Task};

const JSON: &str = "application/x-amz-json-1.1";

/// More than the longest response and its header.
const BUFFER_BYTES: usize = 16 << 20;

/// A keep-alive connection.
struct Connection {
    socket: Box<dyn ReadWrite>,
    buffer: Vec<u8>,
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

impl Connection {
    fn open(task: &Task) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", task.kinesis)).unwrap();
        socket.set_nodelay(true).unwrap();
        let socket: Box<dyn ReadWrite> = match &task.certificates {
            Some(folder) => Box::new(folder.connect(socket)),
            None => Box::new(socket),
        };
        Self { socket, buffer: vec![0; BUFFER_BYTES] }
    }

    /// Returns the body of the response.
    fn call(&mut self, request: &[u8]) -> &[u8] {
        self.socket.write_all(request).unwrap();
        let mut filled = 0;
        let end = loop {
            filled += self.read(filled);
            if let Some(end) = memchr::memmem::find(&self.buffer[..filled], b"\r\n\r\n") {
                break end;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end]).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let (start, length): (usize, usize) = (end + 4, length.parse().unwrap());
        while filled < start + length {
            filled += self.read(filled);
        }
        &self.buffer[start..start + length]
    }

    fn read(&mut self, filled: usize) -> usize {
        let read = self.socket.read(&mut self.buffer[filled..]).unwrap();
        assert!(read > 0, "the server closed the connection");
        read
    }
}

fn request(operation: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nx-amz-target: Kinesis_20131202.{operation}\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Reads the stream once.
pub(crate) fn measure(task: &Task, stream: &str, is_paced: bool) -> Cost {
    let mut connection = Connection::open(task);
    let body = json!({ "StreamName": stream }).to_string();
    let body = connection.call(&request("GetShardIterator", JSON, body.as_bytes()));
    let first: Value = serde_json::from_slice(body).unwrap();
    let iterator = first["ShardIterator"].as_str().unwrap();

    let mut body = b"\xbf\x6dShardIterator\x78\xe0".to_vec();
    let start = body.len();
    body.extend_from_slice(iterator.as_bytes());
    body.push(0xff);
    let mut request = request("GetRecords", CBOR, &body);
    let place = request.len() - body.len() + start..request.len() - 1;

    let (warm_up, records) = (task.warm_up_records(), task.records());
    let (mut read, mut measuring) = (0, None);
    while read < records {
        if read >= warm_up && measuring.is_none() {
            measuring = Some((Measuring::begin(), read));
        }
        if is_paced {
            sleep(task.pause());
        }
        let answer = connection.call(&request);
        // After the map and the name.
        let next = &answer[21..];
        read += count(answer);
        request[place.clone()].copy_from_slice(&next[..place.len()]);
    }
    let (measuring, before) = measuring.unwrap();
    measuring.end(read - before)
}

/// Walks over all items, and returns the number of byte strings: one for each record.
fn count(answer: &[u8]) -> usize {
    let (mut at, mut records) = (0, 0);
    while let Some(head) = answer.get(at) {
        at += 1;
        let extra = match head & 0x1f {
            size @ 24..=27 => 1 << (size - 24),
            _ => 0,
        };
        let argument = if extra == 0 {
            usize::from(head & 0x1f)
        } else {
            let bytes = &answer[at..at + extra];
            bytes.iter().fold(0, |argument, byte| argument << 8 | usize::from(*byte))
        };
        at += extra;
        match head >> 5 {
            2 => {
                records += 1;
                at += argument;
            }
            3 => at += argument,
            _ => {}
        }
    }
    records
}
