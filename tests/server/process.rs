//! What the server costs its process: memory and files. The server runs in a child, where nothing else does.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use roomkeeper::http::server::limits::Limits;

use crate::support::{Client, PATIENCE, Server, short};

/// Where the child writes its address.
const ADDRESS_FILE: &str = "ROOMKEEPER_TEST_ADDRESS_FILE";
/// How many files the child may open; it fills up to a few below that with files of its own.
const OPEN_FILES: &str = "ROOMKEEPER_TEST_OPEN_FILES";

/// How the child ends when its server says that it is broken.
const BROKEN: i32 = 7;

/// Not a test by itself: the body of the child process, which ends when its standard input does.
#[test]
fn child() {
    let Ok(file) = std::env::var(ADDRESS_FILE) else {
        return;
    };
    let mut limits = Limits::default();
    let mut ballast = Vec::new();
    if let Some(files) = std::env::var(OPEN_FILES)
        .ok()
        .and_then(|files| files.parse::<u64>().ok())
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(files),
                maximum: Some(files),
            },
        )
        .unwrap();
        limits = short();
    }
    let server = Server::start(limits);
    if std::env::var_os(OPEN_FILES).is_some() {
        while let Ok(file) = std::fs::File::open("/dev/null") {
            ballast.push(file);
        }
        // The two that the test's connections will use up, and no more.
        ballast.truncate(ballast.len() - 2);
    }
    std::fs::write(format!("{file}.new"), server.address.to_string()).unwrap_or_else(|_| {
        ballast.pop();
        std::fs::write(format!("{file}.new"), server.address.to_string()).unwrap();
    });
    std::fs::rename(format!("{file}.new"), file).unwrap();
    let broken = server.http.broken().clone();
    std::thread::spawn(move || {
        if broken.recv().is_ok() {
            std::process::exit(BROKEN);
        }
    });
    let mut line = String::new();
    while std::io::stdin()
        .read_line(&mut line)
        .is_ok_and(|count| count > 0)
    {
        ballast.clear();
    }
    server.http.stop();
}

struct ChildServer {
    child: Child,
    address: SocketAddr,
}

impl ChildServer {
    fn start(directory: &Path, files: Option<u64>) -> Self {
        let file = directory.join("address");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "process::child", "--test-threads=1"])
            .env(ADDRESS_FILE, &file);
        if let Some(files) = files {
            command.env(OPEN_FILES, files.to_string());
        }
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // From here on the child is waited for, whatever happens.
        let mut server = Self {
            child,
            address: ([127, 0, 0, 1], 0).into(),
        };
        let begun = Instant::now();
        loop {
            if let Ok(address) = std::fs::read_to_string(&file) {
                server.address = address.parse().unwrap();
                return server;
            }
            assert!(begun.elapsed() < PATIENCE, "the child did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A value of `/proc/<pid>/status` in KiB.
    fn kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time used so far.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10) // A hundred a second, on every Linux of today.
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn memory_stays_bounded_whatever_hundreds_of_clients_send_and_do_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let server = ChildServer::start(directory.path(), None);
    assert_eq!(Client::tcp(server.address).get("/").status, 200);
    let before = server.kib("VmRSS:");

    // 400 bodies of a megabyte, all but their last byte: 400 MB if they were all kept.
    let mut senders = Vec::new();
    for _ in 0..400 {
        let mut client = Client::tcp(server.address);
        client.try_send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        client.try_send(vec![b'x'; 999_999]);
        senders.push(client);
    }
    let bodies = server.kib("VmRSS:");
    assert_eq!(Client::tcp(server.address).get("/").status, 200);
    drop(senders);

    // 60 answers of eight megabytes that nobody reads: 480 MB if they were all kept.
    let mut deaf = Vec::new();
    for _ in 0..60 {
        let mut client = Client::tcp(server.address);
        client.try_send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
        deaf.push(client);
    }
    // Sixty are before us: on a slow machine that takes longer than a request may wait, and one is told to try again.
    let begun = Instant::now();
    loop {
        let answer = Client::tcp(server.address).get("/").status;
        if answer == 200 {
            break;
        }
        assert_eq!(answer, 429);
        assert!(begun.elapsed() < PATIENCE, "nobody is served any more");
    }
    let peak = server.kib("VmHWM:");
    println!("resident KiB: {before} at rest, {bodies} with 400 bodies, {peak} at most");
    // The cap of 64 MiB, one round of reading over it, the handlers' own copies, and the allocator's slack: 215 to 315 MiB by
    // how many handlers copy in the same moment. All that was asked for would be 458 MiB, and copies of it.
    assert!(peak < before + 380 * 1024, "{before} -> {peak} KiB");
}

#[test]
fn running_out_of_files_pauses_the_doors_and_does_not_end_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = ChildServer::start(directory.path(), Some(300));
    let crowd: Vec<_> = (0..100).map(|_| Client::tcp(server.address)).collect();
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        server.open_files() >= 298,
        "the child is out of files: {}",
        server.open_files()
    );
    drop(crowd);
    // The child gives up its ballast.
    std::io::Write::write_all(server.child.stdin.as_mut().unwrap(), b"\n").unwrap();
    let begun = Instant::now();
    while server.open_files() > 200 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(Client::tcp(server.address).get("/").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn connections_that_are_over_leave_no_file_open() {
    let directory = tempfile::tempdir().unwrap();
    let server = ChildServer::start(directory.path(), None);
    assert_eq!(Client::tcp(server.address).get("/").status, 200);
    let before = server.open_files();
    for number in 0..500 {
        let mut client = Client::tcp(server.address);
        if number % 2 == 0 {
            client.get("/");
        } else {
            client.try_send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
        }
    }
    let begun = Instant::now();
    while server.open_files() > before + 2 {
        assert!(
            begun.elapsed() < PATIENCE,
            "{} files, {before} before",
            server.open_files()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_tiny_http_that_has_died_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = ChildServer::start(directory.path(), Some(300));
    // With one file left for the client and at most one for the server, tiny_http cannot accept: its accept thread
    // ends, or panics, and nobody would ever be served again.
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = server.child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody noticed");
        if let Ok(stream) = std::net::TcpStream::connect(server.address) {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let mut client = Client::new(stream);
            client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let _ = std::io::Read::read(&mut client.stream, &mut [0; 64]);
        }
    };
    assert_eq!(status.code(), Some(BROKEN));
}

#[test]
fn waiting_costs_no_processor_time_whatever_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let server = ChildServer::start(directory.path(), None);
    let mut clients = Vec::new();
    for number in 0..40 {
        let mut client = Client::tcp(server.address);
        match number % 8 {
            0 => {}
            1 => client.send("GET / HT"),
            2 => client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"),
            3 => client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n"),
            4 => assert!(!client.get("/").closes()),
            5 => client.send("\0"), // Answered, and lingered over.
            6 => {
                client.send("GET /sleep HTTP/1.1\r\nHost: a\r\n\r\n");
                client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            _ => client.send("GET /sleep HTTP/1.1\r\nHost: a\r\n\r\nGET /early"),
        }
        clients.push(client);
    }
    // Work that was begun may go on for a while on a busy machine; waiting itself must become free.
    let quiet = (0..5).any(|_| {
        std::thread::sleep(Duration::from_millis(300));
        let before = server.processor_time();
        std::thread::sleep(Duration::from_millis(1000));
        let used = server.processor_time() - before;
        println!("40 clients in every state cost {used:?} of processor time in a second");
        used <= Duration::from_millis(150)
    });
    assert!(quiet);
}
