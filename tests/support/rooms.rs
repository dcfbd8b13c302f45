//! Random rooms that no homeserver can be made to hold over HTTP: forks, holes, late arrivals of low depth, events
//! that were backfilled, rejected, soft-failed or never in the timeline, redactions in every direction.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;

use super::draft::{Draft, Event, FIRST_TS, Relation};
use super::extras;
use super::ids::{People, event_id};

/// What sort of sample is wanted.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub rooms: Range<usize>,
    pub events: Range<usize>,
    /// Whether a room may get more than a hundred changes of state in a row.
    pub may_be_long: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            rooms: 2..4,
            events: 12..60,
            may_be_long: true,
        }
    }
}

/// A sample that is written to a file.
pub struct Sample {
    pub seed: u64,
    pub server_name: String,
    pub rooms: Vec<String>,
}

/// Draws a sample; the same seed gives the same one.
pub fn draw(seed: u64, recipe: &Recipe) -> Draft {
    let mut rng = StdRng::seed_from_u64(seed);
    let server = ["example.org", "example.org:8448", "localhost"][rng.random_range(0..3)];
    let mut draft = Draft::new(server, seed);
    draft.fills_state_key = rng.random();
    let people = People::around(server);
    let mut stories: Vec<Story> = Vec::new();
    for n in 0..rng.random_range(recipe.rooms.clone()) {
        let room = format!("!room{n}:{server}");
        let mut story = Story::new(room, server, &people, &mut rng);
        story.tell(recipe, &mut rng);
        stories.push(story);
    }
    draft.events = arrive(stories, &mut rng);
    draft.settle();
    extras::groups(&mut draft, &mut rng);
    extras::rows(&mut draft, &people, &mut rng);
    draft
}

/// Draws a sample and writes it into a new database at `path`.
pub fn make(path: &Path, seed: u64, recipe: &Recipe) -> Sample {
    let draft = draw(seed, recipe);
    write(path, &draft);
    Sample {
        seed,
        server_name: draft.server_name.clone(),
        rooms: draft.rooms().into_iter().map(str::to_owned).collect(),
    }
}

/// Writes a draft into a new database at `path`.
pub fn write(path: &Path, draft: &Draft) {
    std::fs::write(path, empty()).expect("a new database");
    let conn = Connection::open(path).expect("it opens");
    // Nobody loses anything if the machine stops now. The SQLite that homeservers use overwrites what it deletes.
    conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA secure_delete = ON")
        .expect("set");
    draft.write(&conn);
}

/// An empty database, made once and copied: making the tables takes longer than filling them.
fn empty() -> &'static [u8] {
    static EMPTY: OnceLock<Vec<u8>> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("empty.db");
        roomkeeper::store::schema::create(&path).expect("a new database");
        std::fs::read(&path).expect("it is read")
    })
}

/// One room as it grows. Streams are given later, when all rooms are told.
struct Story<'a> {
    room: String,
    people: &'a People,
    /// Domain of event ids, in rooms of versions 1 and 2.
    id_domain: Option<String>,
    events: Vec<Event>,
    /// Sound events that nothing follows yet.
    tips: Vec<String>,
    roots: Vec<String>,
    /// Events before this one were never in our timeline.
    held_from: usize,
    /// Events before this one were backfilled.
    live_from: usize,
}

impl<'a> Story<'a> {
    fn new(room: String, server: &str, people: &'a People, rng: &mut StdRng) -> Self {
        let domains = [server, "remote.example"];
        let id_domain = rng
            .random_ratio(1, 5)
            .then(|| domains[rng.random_range(0..2)].to_owned());
        Self {
            room,
            people,
            id_domain,
            events: Vec::new(),
            tips: Vec::new(),
            roots: Vec::new(),
            held_from: 0,
            live_from: 0,
        }
    }

    /// Tells the room from its creation on.
    fn tell(&mut self, recipe: &Recipe, rng: &mut StdRng) {
        let creator = self.people.any(rng);
        self.grow(rng, 1, |e| e.state("m.room.create", ""), &creator);
        self.grow(rng, 1, |e| e.member(&creator, "join"), &creator);
        let power = rng.random_ratio(1, 2);
        if power {
            self.grow(rng, 1, |e| e.state("m.room.power_levels", ""), &creator);
        }
        let wanted = self.events.len() + rng.random_range(recipe.events.clone());
        let long_at = (recipe.may_be_long && rng.random_ratio(1, 6))
            .then(|| rng.random_range(5..wanted.max(6)));
        while self.events.len() < wanted {
            if long_at == Some(self.events.len()) {
                for _ in 0..rng.random_range(101..130) {
                    self.change_member(rng);
                }
                break;
            }
            self.happen(rng);
        }
        // Now and then the newest events by arrival are old ones by depth.
        for _ in 0..rng.random_range(0..5_usize).saturating_sub(1) {
            let sender = self.people.any(rng);
            self.come_late(rng, &sender);
        }
        self.refer(rng);
        self.be_joined_late(rng);
    }

    /// Something happens.
    fn happen(&mut self, rng: &mut StdRng) {
        let sender = self.people.any(rng);
        match rng.random_range(0..100) {
            0..=11 => self.change_member(rng),
            12..=17 => {
                let kind =
                    ["m.room.topic", "m.room.name", "m.room.retention"][rng.random_range(0..3)];
                self.grow(rng, 2, |e| e.state(kind, ""), &sender);
            }
            18..=20 => {
                let key = format!("key{}", rng.random_range(0..4));
                self.grow(rng, 2, |e| e.state("org.example.widget", &key), &sender);
            }
            21..=32 => self.grow(rng, 2, |e| e.redacting("?"), &sender),
            33..=46 => {
                let kind = [
                    "m.thread",
                    "m.thread",
                    "m.thread",
                    "m.replace",
                    "m.annotation",
                ][rng.random_range(0..5)];
                self.grow(rng, 2, |e| e.relating("?", kind), &sender);
            }
            47..=51 => {
                let kind =
                    ["m.sticker", "m.room.encrypted", "org.example.note"][rng.random_range(0..3)];
                self.grow(
                    rng,
                    2,
                    |mut e| {
                        e.kind = kind.into();
                        e
                    },
                    &sender,
                );
            }
            52..=56 => self.come_late(rng, &sender),
            57..=60 => self.leave_a_gap(rng, &sender),
            61..=64 => self.be_refused(rng, &sender),
            65..=69 => self.be_an_outlier(rng, &sender),
            _ => self.grow(rng, 2, |e| e, &sender),
        }
    }

    fn change_member(&mut self, rng: &mut StdRng) {
        let (user, sender) = (self.people.any(rng), self.people.any(rng));
        let membership = ["join", "join", "join", "leave", "invite", "ban"][rng.random_range(0..6)];
        self.grow(rng, 2, |e| e.member(&user, membership), &sender);
    }

    /// A sound event follows some of the tips, seldom something older (which forks the room).
    fn grow(
        &mut self,
        rng: &mut StdRng,
        most: usize,
        make: impl FnOnce(Event) -> Event,
        sender: &str,
    ) {
        let mut prevs: Vec<String> = Vec::new();
        let fork = most > 1 && rng.random_ratio(1, 8);
        for _ in 0..rng.random_range(1..=most) {
            let from: Vec<String> = if fork {
                let recent = self.events.len().saturating_sub(6);
                self.events[recent..]
                    .iter()
                    .filter(|e| !e.outlier)
                    .map(|e| e.id.clone())
                    .collect()
            } else {
                self.tips.clone()
            };
            if !from.is_empty() {
                prevs.push(from[rng.random_range(0..from.len())].clone());
            }
        }
        prevs.sort();
        prevs.dedup();
        let depth = self.depth_after(&prevs);
        let event = make(self.event(rng, sender, depth, prevs));
        self.join_the_graph(event);
    }

    fn event(&self, rng: &mut StdRng, sender: &str, depth: i64, prevs: Vec<String>) -> Event {
        let id = event_id(rng, self.id_domain.as_deref());
        let mut event = Event::message(&id, &self.room, sender, depth, 0);
        event.prevs = prevs;
        if rng.random_ratio(1, 30) {
            event.sender = None;
        }
        event
    }

    fn depth_after(&self, prevs: &[String]) -> i64 {
        let held = self.events.iter().filter(|e| prevs.contains(&e.id));
        held.map(|e| e.depth).max().unwrap_or(0) + 1
    }

    fn join_the_graph(&mut self, event: Event) {
        self.tips.retain(|tip| !event.prevs.contains(tip));
        self.tips.push(event.id.clone());
        self.events.push(event);
    }

    /// An event of low depth arrives when the room is long past it.
    fn come_late(&mut self, rng: &mut StdRng, sender: &str) {
        let timeline: Vec<&Event> = self
            .events
            .iter()
            .filter(|e| !e.outlier && !e.rejected)
            .collect();
        let prev = timeline[rng.random_range(0..timeline.len())].id.clone();
        let depth = self.depth_after(std::slice::from_ref(&prev));
        let mut event = self.event(rng, sender, depth, vec![prev]);
        match rng.random_range(0..4) {
            0 => event = event.state("m.room.topic", ""),
            1 => event.kind = "org.example.note".into(),
            _ => {}
        }
        self.join_the_graph(event);
    }

    /// An event follows one that we do not hold.
    fn leave_a_gap(&mut self, rng: &mut StdRng, sender: &str) {
        let mut prevs = vec![event_id(rng, self.id_domain.as_deref())];
        if rng.random() {
            prevs.push(self.tips[0].clone());
        }
        let depth = self.depth_after(&self.tips) + rng.random_range(0..5);
        let event = self.event(rng, sender, depth, prevs);
        self.join_the_graph(event);
    }

    /// A rejected or soft-failed event: nothing sound needs to follow it.
    fn be_refused(&mut self, rng: &mut StdRng, sender: &str) {
        let prevs = vec![self.tips[rng.random_range(0..self.tips.len())].clone()];
        let depth = self.depth_after(&prevs);
        let mut event = self.event(rng, sender, depth, prevs);
        if rng.random_ratio(1, 3) {
            let user = self.people.any(rng);
            event = event.member(&user, "join");
        }
        if rng.random() {
            event.rejected = true;
        } else {
            event.soft_failed = true;
        }
        self.events.push(event);
    }

    /// An event held for its own sake, outside the timeline, state or not, pointing wherever.
    fn be_an_outlier(&mut self, rng: &mut StdRng, sender: &str) {
        let at = rng.random_range(0..self.events.len());
        let prevs = vec![self.events[at].id.clone()];
        let depth = self.depth_after(&prevs) + rng.random_range(0..3);
        let mut event = self.event(rng, sender, depth, prevs).outside();
        if rng.random() {
            let user = self.people.any(rng);
            event = event.member(&user, "invite");
        }
        event.rejected = rng.random_ratio(1, 4);
        self.events.push(event);
    }

    /// Redactions and relations find what they are about: earlier, later, unknown, themselves, each other.
    fn refer(&mut self, rng: &mut StdRng) {
        let ids: Vec<String> = self.events.iter().map(|e| e.id.clone()).collect();
        let pick = |rng: &mut StdRng, of: &[String]| of[rng.random_range(0..of.len())].clone();
        let redactions: Vec<String> = self
            .events
            .iter()
            .filter(|e| e.redacts.is_some())
            .map(|e| e.id.clone())
            .collect();
        self.roots = (0..3).map(|_| pick(rng, &ids)).collect();
        self.roots.push(event_id(rng, None));
        for at in 0..self.events.len() {
            let roots = self.roots.clone();
            let near = &ids[at.saturating_sub(8)..(at + 8).min(ids.len())];
            let event = &mut self.events[at];
            if event.redacts.is_some() {
                event.redacts = Some(match rng.random_range(0..12) {
                    0 => event_id(rng, None),
                    1..=3 => pick(rng, &redactions),
                    4..=6 => pick(rng, &ids),
                    _ => pick(rng, near),
                });
            }
            if let Some(relation) = &event.relates {
                let of = if relation.kind == "m.thread" {
                    &roots
                } else {
                    near
                };
                let to = pick(rng, of);
                // Nothing replies to itself.
                event.relates = (to != event.id).then(|| Relation {
                    to,
                    ..relation.clone()
                });
            }
        }
    }

    /// The server may have joined late: what came before was backfilled, or is not held at all but for its state.
    fn be_joined_late(&mut self, rng: &mut StdRng) {
        if !rng.random_ratio(2, 5) {
            return;
        }
        self.live_from = rng.random_range(0..self.events.len());
        self.held_from = rng.random_range(0..=self.live_from);
        let held_from = self.held_from;
        let mut at = 0;
        let mut dropped = 0;
        self.events.retain_mut(|event| {
            let before = at < held_from;
            at += 1;
            event.outlier |= before;
            let keep = !before || event.state_key.is_some();
            dropped += usize::from(!keep);
            keep
        });
        self.live_from -= dropped;
        self.held_from -= dropped;
    }

    /// Events in the order in which they came live, and those that were backfilled, the last one first.
    fn arrivals(self, rng: &mut StdRng) -> (Vec<Event>, Vec<Event>) {
        let (held_from, live_from) = (self.held_from, self.live_from);
        let (mut first, mut live, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for (at, event) in self.events.into_iter().enumerate() {
            // State can have come as an outlier with the join, and have been placed in the timeline later.
            let came_with_join = at < held_from || (event.state_key.is_some() && rng.random());
            if at >= live_from {
                live.push(event);
            } else if came_with_join {
                first.push(event);
            } else {
                back.push(event);
            }
        }
        back.reverse();
        first.extend(live);
        (first, back)
    }
}

/// Gives every event its stream ordering, the rooms' events mingled as they arrived.
fn arrive(stories: Vec<Story<'_>>, rng: &mut StdRng) -> Vec<Event> {
    let (lives, backs): (Vec<_>, Vec<_>) = stories.into_iter().map(|s| s.arrivals(rng)).unzip();
    let mut events = mingle(lives, 2, 1, rng);
    events.extend(mingle(backs, -1, -1, rng));
    let ids: BTreeSet<&String> = events.iter().map(|e| &e.id).collect();
    assert_eq!(ids.len(), events.len(), "event ids are unique");
    events
}

fn mingle(queues: Vec<Vec<Event>>, first: i64, step: i64, rng: &mut StdRng) -> Vec<Event> {
    let mut queues: Vec<_> = queues.into_iter().map(Vec::into_iter).collect();
    let (mut mingled, mut stream) = (Vec::new(), first);
    while !queues.is_empty() {
        let at = rng.random_range(0..queues.len());
        match queues[at].next() {
            None => drop(queues.remove(at)),
            Some(mut event) => {
                event.stream = stream;
                let known = rng.random_ratio(19, 20);
                event.received_ts = known.then_some(FIRST_TS + stream.abs() * 1_000);
                // Numbers are missing where events were not stored.
                stream += step * rng.random_range(1..3);
                mingled.push(event);
            }
        }
    }
    mingled
}
