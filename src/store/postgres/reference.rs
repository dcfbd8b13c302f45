//! Whom a connection asks for what, beside psycopg2: the servers of `tests/config/libpq.py`, which only take notes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::address::Target;
use crate::database::Server;
use crate::error::Error;

/// Who came: server, user, database, options, password.
type Met = Arc<Mutex<Vec<[Option<String>; 5]>>>;

/// A server of `tests/config/libpq.py`: it notes who comes, and behaves as it is told.
fn server(name: &'static str, how: String, met: Met) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let _ = talk(connection, name, &how, &met);
        }
    });
    port
}

fn talk(mut c: TcpStream, name: &str, how: &str, met: &Met) -> std::io::Result<()> {
    let exactly = |c: &mut TcpStream, n: usize| {
        let mut bytes = vec![0; n];
        c.read_exact(&mut bytes).map(|()| bytes)
    };
    let number = |bytes: &[u8]| i32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
    let send = |c: &mut TcpStream, kind: u8, body: &[u8]| {
        let length = i32::try_from(body.len() + 4).expect("short").to_be_bytes();
        c.write_all(&[&[kind][..], &length, body].concat())
    };
    let body = loop {
        let head = exactly(&mut c, 8)?;
        let body = exactly(&mut c, number(&head) as usize - 8)?;
        if matches!(number(&head[4..]), 80_877_103 | 80_877_104) {
            c.write_all(b"N")?;
            continue;
        }
        break body;
    };
    let words: Vec<String> = body
        .split(|b| *b == 0)
        .map(|w| String::from_utf8_lossy(w).into())
        .collect();
    let keys: HashMap<&str, &str> = words
        .chunks(2)
        .filter(|c| c.len() == 2)
        .map(|c| (&*c[0], &*c[1]))
        .collect();
    let of = |key: &str| keys.get(key).map(|value| (*value).to_owned());
    let row = [
        Some(name.to_owned()),
        of("user"),
        of("database"),
        of("options"),
        None,
    ];
    let at = {
        let mut met = met.lock();
        met.push(row);
        met.len() - 1
    };
    match how {
        "ask" => {
            send(&mut c, b'R', &3_i32.to_be_bytes())?;
            let head = exactly(&mut c, 5)?;
            let text = exactly(&mut c, number(&head[1..]) as usize - 4)?;
            if head[0] == b'p' {
                let text = String::from_utf8_lossy(&text)
                    .trim_end_matches('\0')
                    .to_owned();
                met.lock()[at][4] = Some(text);
            }
            send(&mut c, b'E', b"SFATAL\0VFATAL\0C28P01\0Mno\0\0")
        }
        "starting" => send(&mut c, b'E', b"SFATAL\0VFATAL\0C57P03\0Mstarting\0\0"),
        how => {
            send(&mut c, b'R', &0_i32.to_be_bytes())?;
            send(
                &mut c,
                b'S',
                &[&b"server_version"[..], &[0], b"15.1", &[0]].concat(),
            )?;
            send(&mut c, b'K', &[0, 0, 0, 1, 0, 0, 0, 1])?;
            send(&mut c, b'Z', b"I")?;
            loop {
                let head = exactly(&mut c, 5)?;
                exactly(&mut c, number(&head[1..]) as usize - 4)?;
                if head[0] != b'Q' {
                    return Ok(());
                }
                let field = |name: &[u8]| {
                    [
                        name,
                        &[
                            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0,
                        ],
                    ]
                    .concat()
                };
                send(
                    &mut c,
                    b'T',
                    &[&[0, 2][..], &field(b"a"), &field(b"b")].concat(),
                )?;
                let standby = if how == "standby" { b"t" } else { b"f" };
                let read_only: &[u8] = if how == "primary" { b"off" } else { b"on" };
                let length = |text: &[u8]| i32::try_from(text.len()).expect("short").to_be_bytes();
                send(
                    &mut c,
                    b'D',
                    &[
                        &[0, 2][..],
                        &length(standby),
                        standby,
                        &length(read_only),
                        read_only,
                    ]
                    .concat(),
                )?;
                send(&mut c, b'C', b"SELECT 1\0")?;
                send(&mut c, b'Z', b"I")?;
            }
        }
    }
}

#[test]
fn whom_it_asks_for_what_is_whom_psycopg2_asks() {
    let table = include_str!("../../../tests/config/libpq.jsonl");
    let directory = tempfile::tempdir().expect("a directory");
    let passfile = directory.path().join("passfile");
    let gone = TcpListener::bind("127.0.0.1:0")
        .expect("binds")
        .local_addr()
        .expect("bound")
        .port();
    let me = whoami::username().expect("a user");
    let (mut seen, mut wrong) = (0, Vec::new());
    for line in table.lines() {
        seen += 1;
        let row: Value = serde_json::from_str(line).expect("a row");
        let met = Met::default();
        let how = |name: &str| row["servers"][name].as_str().unwrap_or("ask").to_owned();
        let (a, b) = (
            server("A", how("A"), met.clone()),
            server("B", how("B"), met.clone()),
        );
        let real = |text: &Value| {
            text.as_str()
                .expect("a text")
                .replace("$A", &a.to_string())
                .replace("$B", &b.to_string())
                .replace("$GONE", &gone.to_string())
                .replace("$PASSFILE", &passfile.to_string_lossy())
        };
        if !row["passfile"].is_null() {
            std::fs::write(&passfile, real(&row["passfile"])).expect("written");
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&passfile, mode).expect("set");
        }
        let args = row["args"].as_object().expect("keys");
        let args = args
            .iter()
            .map(|(key, value)| (key.clone(), real(value)))
            .collect();
        let environment = |name: &str| match (row["env"].get(name), name) {
            (Some(value), _) => Some(real(value)),
            // There is no file of this user's here.
            (None, "PGPASSFILE") => Some("/nonexistent/.pgpass".into()),
            _ => None,
        };
        let failed = |e: postgres::Error| Error::Store {
            doing: "connect",
            source: super::error(&e).into(),
        };
        let target = Target::of(&Server::Keys(args), environment);
        let reached = target.and_then(|target| target.connect(failed));
        let reached = reached
            .is_ok()
            .then(|| met.lock().last().and_then(|row| row[0].clone()))
            .flatten();
        let met: Vec<Value> = met
            .lock()
            .iter()
            .map(|row| {
                json!(row.clone().map(|field| if field.as_deref() == Some(&me) {
                    Some("$USER".into())
                } else {
                    field
                }))
            })
            .collect();
        if json!(met) != row["met"] || json!(reached) != row["reached"] {
            wrong.push(format!("{line}\n    and here {} {reached:?}", json!(met)));
        }
    }
    assert!(seen > 70, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
