//! A http with a handler of ours behind it, and a client that can misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roomkeeper::config::Listen;
use roomkeeper::http::HttpServer;
use roomkeeper::http::handlers::{Request, Response};
use roomkeeper::http::server::limits::Limits;

/// Long enough for any answer on a busy machine; what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A free port that only this machine reaches.
pub fn loopback() -> Listen {
    Listen::Tcp(([127, 0, 0, 1], 0).into())
}

/// An open http that tells what it got.
pub struct Server {
    pub http: HttpServer,
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
}

impl Server {
    pub fn start(limits: Limits) -> Self {
        Self::start_with(limits, &[loopback()], answer)
    }

    pub fn start_with(
        limits: Limits,
        listen: &[Listen],
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = requests.clone();
        let handler = move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            answer(&request)
        };
        let http = HttpServer::open(listen, limits, Arc::new(handler)).expect("an open http");
        let address = http
            .addresses()
            .first()
            .copied()
            .unwrap_or(([127, 0, 0, 1], 0).into());
        Self {
            http,
            address,
            requests,
        }
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::tcp(self.address)
    }
}

/// Tells what came: method, target, origin, tokens, length of the body. `/big` answers eight megabytes, `/panic`
/// panics, `/sleep` takes two seconds.
pub fn answer(request: &Request) -> Response {
    if request.target == "/panic" {
        panic!("asked for");
    }
    if request.target == "/sleep" {
        std::thread::sleep(Duration::from_secs(2));
    }
    let body = if request.target == "/big" {
        vec![b'x'; 8 * 1024 * 1024]
    } else {
        serde_json::json!({
            "method": request.method,
            "target": request.target,
            "origin": request.origin.as_str(),
            "authorization": request.authorization,
            "body": request.body.len(),
        })
        .to_string()
        .into_bytes()
    };
    Response {
        status: 200,
        headers: Vec::new(),
        body,
    }
}

/// Times so short that a test can wait for them.
pub fn short() -> Limits {
    let time = Duration::from_millis;
    Limits {
        head: time(400),
        body: time(400),
        wait: time(400),
        write: time(800),
        idle: time(400),
        ..Limits::default()
    }
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn closes(&self) -> bool {
        self.head
            .to_ascii_lowercase()
            .contains("\r\nconnection: close")
    }
}

/// A client of one connection.
pub struct Client<S> {
    pub stream: S,
    rest: Vec<u8>,
}

impl Client<TcpStream> {
    pub fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sent");
    }

    /// Sends what the server may stop listening to.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        self.answer().expect("an answer")
    }

    pub fn post(&mut self, target: &str, body: &[u8]) -> Answer {
        self.send(format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ));
        self.send(body);
        self.answer().expect("an answer")
    }

    /// Reads one answer; `None` when the connection ends before it begins.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_to(false)
    }

    pub fn answer_to(&mut self, head_request: bool) -> Option<Answer> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut chunk = [0; 65536];
        loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..end + 2].to_vec()).expect("a head of text");
                let status = head[9..12].parse().expect("a status");
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("Content-Length: "));
                let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
                let length = if head_request || status == 100 {
                    0
                } else {
                    length
                };
                while bytes.len() < end + 4 + length {
                    let count = self.stream.read(&mut chunk).expect("more of the body");
                    assert_ne!(count, 0, "the body broke off");
                    bytes.extend_from_slice(&chunk[..count]);
                }
                self.rest = bytes.split_off(end + 4 + length);
                return Some(Answer {
                    status,
                    head,
                    body: bytes.split_off(end + 4),
                });
            }
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => {
                    assert!(
                        bytes.is_empty(),
                        "the head broke off: {}",
                        bytes.escape_ascii()
                    );
                    return None;
                }
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Whether the server ends the connection, having said nothing more.
    pub fn is_over(&mut self) -> bool {
        assert!(
            self.rest.is_empty(),
            "more was said: {}",
            self.rest.escape_ascii()
        );
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => panic!("more was said"),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
