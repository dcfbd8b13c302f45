//! The page at `/`, used as a person uses it, in a real headless browser: log in, look at the rooms, plan, purge, watch,
//! cancel; a failure is shown, and a hostile room name is text.
//!
//! `tests/browser/use_the_page.py` does the clicking. It needs chromium and its driver, and Python with selenium:
//! ROOMKEEPER_BROWSER_PYTHON names that Python. Where they are missing this suite says so, and fails in CI.
#![cfg(feature = "daemon")]

mod sample;
mod support;

use std::path::Path;
use std::process::Command;

use roomkeeper::config::{Listen, Secret};
use roomkeeper::{Keeper, http};
use rusqlite::Connection;
use support::work::Site;

const TOKEN: &str = "the-token-of-the-browser";

/// What somebody may call a room.
const HOSTILE: &str =
    "<img src=x onerror=document.title='owned'>\u{202e}<script>document.title='owned'</script>";

fn python() -> Option<String> {
    let named = std::env::var("ROOMKEEPER_BROWSER_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_selenium = Command::new(&named)
        .args(["-c", "import selenium"])
        .output()
        .is_ok_and(|output| output.status.success());
    let has_browser = ["chromium", "chromedriver"]
        .iter()
        .all(|name| Path::new("/usr/bin").join(name).exists());
    (has_selenium && has_browser).then_some(named)
}

#[test]
fn a_person_uses_the_page() {
    let Some(python) = python() else {
        assert!(
            std::env::var_os("ROOMKEEPER_CI").is_none(),
            "no chromium, chromedriver or selenium: the page was not tried"
        );
        println!("TESTED NOTHING: no chromium, chromedriver or selenium");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("homeserver.db");
    sample::create(&database, &["a", "b"], 3_000);
    let conn = Connection::open(&database).expect("opens");
    for (room, name) in [("a", "Garden"), ("b", HOSTILE)] {
        conn.execute(
            "INSERT INTO room_stats_state (room_id, name) VALUES ($1, $2)
                 ON CONFLICT (room_id) DO UPDATE SET name = excluded.name",
            (sample::room_id(room), name),
        )
        .expect("named");
    }
    drop(conn);
    let mut config = Site::at(&database, sample::SERVER_NAME).config();
    config.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
    config.admin_token = Some(Secret::new(TOKEN));
    config.clock = std::sync::Arc::new(roomkeeper::time::SystemClock);
    config.batch.events_offline = 100;
    let keeper = Keeper::open(config).expect("opens");
    let server = http::serve(keeper.clone()).expect("serves");
    let address = format!("http://{}/", server.addresses()[0]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/use_the_page.py");
    let output = Command::new(python)
        .arg(script)
        .arg(&address)
        .env("ROOMKEEPER_BROWSER_TOKEN", TOKEN)
        .env("ROOMKEEPER_BROWSER_ROOM", sample::room_id("a"))
        .output()
        .expect("it starts");
    server.stop();
    keeper.stop();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
