//! Many clients at a time, most of them up to no good.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use roomkeeper::config::Listen;
use roomkeeper::http::server::limits::Limits;
use roomkeeper::http::server::request_class::RequestClass;

use crate::support::{Client, Server, answer, loopback};

/// Ten requests of healthy clients, each with a connection of its own: the longest time one took.
fn slowest_of_ten(server: &Server) -> Duration {
    let times = (0..10).map(|_| {
        let begun = Instant::now();
        let answer = server.connect().post("/", b"{}");
        assert_eq!(answer.status, 200);
        begun.elapsed()
    });
    times.max().unwrap()
}

fn slow_connections(server: &Server, count: usize) -> Vec<Client<TcpStream>> {
    let connect = |number: usize| {
        let mut client = server.connect();
        client.send(match number % 3 {
            0 => "",
            1 => "GET / HTTP/1.1\r\nX: ",
            _ => "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
        });
        client
    };
    (0..count).map(connect).collect()
}

#[test]
fn a_healthy_client_is_served_within_a_second_beside_300_slow_ones() {
    let server = Server::start(Limits::default());
    let mut slow = slow_connections(&server, 300);
    let before = slowest_of_ten(&server);
    let mut worst = before;
    for _ in 0..5 {
        for client in &mut slow {
            client.try_send("x");
        }
        worst = worst.max(slowest_of_ten(&server));
    }
    println!("beside 300 slow connections the slowest of 60 requests took {worst:?}");
    assert!(worst < Duration::from_secs(1), "{worst:?}");
}

#[test]
fn more_slow_clients_than_places_push_each_other_out_and_no_one_else() {
    let server = Server::start(Limits::default());
    let mut slow = Vec::new();
    let mut worst = Duration::ZERO;
    for _ in 0..4 {
        slow.extend(slow_connections(&server, 300));
        worst = worst.max(slowest_of_ten(&server));
    }
    println!("beside 1200 slow connections the slowest of 40 requests took {worst:?}");
    assert!(worst < Duration::from_secs(1), "{worst:?}");
}

#[test]
fn a_crowd_on_the_port_leaves_the_unix_socket_free() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("control.sock");
    let limits = Limits {
        connections: 64,
        connections_per_listener: 56,
        ..Limits::default()
    };
    let listen = [loopback(), Listen::Unix(path.clone())];
    let server = Server::start_with(limits, &listen, answer);
    // An operator's connection, kept open in silence through the rush.
    let mut operator = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(operator.get("/").status, 200);
    let _crowd = slow_connections(&server, 500);
    assert_eq!(operator.get("/").status, 200);
    assert_eq!(
        Client::new(UnixStream::connect(&path).unwrap())
            .get("/")
            .status,
        200
    );
}

#[test]
fn ten_thousand_quick_connections_leave_nothing_behind() {
    let server = Server::start(Limits::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..2500 {
                    match (number + thread) % 5 {
                        0 => assert_eq!(server.connect().get("/").status, 200),
                        1 => server
                            .connect()
                            .try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
                        2 => server.connect().try_send("GET / HT"),
                        3 => server.connect().try_send("\0"),
                        _ => drop(server.connect()),
                    }
                }
            });
        }
    });
    println!("10000 connections came and went in {:?}", begun.elapsed());
    assert!(slowest_of_ten(&server) < Duration::from_secs(1));
    assert!(server.http.broken().is_empty());
}

#[test]
fn fifty_slow_requests_wait_their_turn_and_nobody_else_does() {
    let opened = Arc::new((Mutex::new(false), Condvar::new()));
    let (slow_now, slow_most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let limits = Limits {
        class: |_, target| match target {
            "/slow" => RequestClass::Slow,
            _ => RequestClass::Quick,
        },
        ..Limits::default()
    };
    let most_allowed = limits.slow;
    let (http, now, most) = (opened.clone(), slow_now.clone(), slow_most.clone());
    let server = Server::start_with(limits, &[loopback()], move |request| {
        if request.target == "/slow" {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (is_open, changed) = &*http;
            let shut = is_open.lock().unwrap();
            drop(changed.wait_while(shut, |is_open| !*is_open).unwrap());
            now.fetch_sub(1, Ordering::SeqCst);
        }
        answer(request)
    });
    let mut slow: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for (n, client) in slow.iter_mut().enumerate() {
        let reader = n % 10;
        client.send(format!(
            "GET /slow HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {reader}\r\n\r\n"
        ));
    }
    while slow_now.load(Ordering::SeqCst) < most_allowed {
        std::thread::yield_now();
    }
    assert!(slowest_of_ten(&server) < Duration::from_secs(1));
    *opened.0.lock().unwrap() = true;
    opened.1.notify_all();
    for client in &mut slow {
        assert_eq!(client.answer().unwrap().status, 200);
    }
    assert_eq!(slow_most.load(Ordering::SeqCst), most_allowed);
}

#[test]
fn bursts_of_five_hundred_are_answered_and_begun_in_order_of_arrival() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let limits = Limits {
        class: |_, target| match target.starts_with("/slow") {
            true => RequestClass::Slow,
            false => RequestClass::Quick,
        },
        // One at a time, so that the order of their beginnings is seen.
        handler_requests: 2,
        slow: 1,
        slow_per_reader: 1,
        wait: Duration::from_secs(60),
        ..Limits::default()
    };
    let begun = order.clone();
    let server = Server::start_with(limits, &[loopback()], move |request| {
        if let Some(number) = request.target.strip_prefix("/slow") {
            begun.lock().unwrap().push(number.parse::<usize>().unwrap());
        }
        answer(request)
    });
    let mut burst: Vec<_> = (0..500).map(|_| server.connect()).collect();
    // All of one reader; each is read before the next is sent, or their order would be anybody's.
    for (number, client) in burst.iter_mut().enumerate() {
        client.send(format!("GET /slow{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    for client in &mut burst {
        assert_eq!(client.answer().unwrap().status, 200);
    }
    let order = order.lock().unwrap().clone();
    assert_eq!(order.len(), 500);
    // One that came in a moment before another may be read a moment after it; none falls back further than that.
    for (place, number) in order.iter().enumerate() {
        assert!(
            place.abs_diff(*number) <= 3,
            "{number} was begun as number {place}: {order:?}"
        );
    }
}

#[test]
fn one_reader_leaves_handlers_to_the_others() {
    let opened = Arc::new((Mutex::new(false), Condvar::new()));
    let limits = Limits {
        class: |_, _| RequestClass::Slow,
        ..Limits::default()
    };
    let (http, most) = (opened.clone(), limits.slow_per_reader);
    assert!(most < limits.slow);
    let server = Server::start_with(limits, &[loopback()], move |request| {
        if request.authorization == ["Bearer greedy"] {
            let (is_open, changed) = &*http;
            let shut = is_open.lock().unwrap();
            drop(changed.wait_while(shut, |is_open| !*is_open).unwrap());
        }
        answer(request)
    });
    let mut greedy: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &mut greedy {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer greedy\r\n\r\n");
    }
    while server.count() < most {
        std::thread::yield_now();
    }
    for _ in 0..10 {
        let mut other = server.connect();
        other.send("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer other\r\n\r\n");
        assert_eq!(other.answer().unwrap().status, 200);
    }
    assert_eq!(server.count(), most + 10);
    *opened.0.lock().unwrap() = true;
    opened.1.notify_all();
    for client in &mut greedy {
        assert_eq!(client.answer().unwrap().status, 200);
    }
}
