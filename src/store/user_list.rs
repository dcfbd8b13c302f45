//! The list of users that admins page through.

use super::db::{Db, params};
use super::pages::json_list;
use crate::error::Error;

/// By what users are ordered: the words of Synapse's `order_by`, and the expression that each means.
const ORDERS: &[(&str, &str)] = &[
    ("name", "u.name"),
    ("displayname", "p.displayname"),
    ("is_guest", "u.is_guest"),
    ("admin", "u.admin"),
    ("deactivated", "u.deactivated"),
    ("user_type", "u.user_type"),
    ("avatar_url", "p.avatar_url"),
    ("shadow_banned", "SHADOW_BANNED"),
    ("creation_ts", "u.creation_ts"),
    ("last_seen_ts", "LAST_SEEN"),
    ("locked", "LOCKED"),
];

/// The words by which users can be ordered; the first is what nothing said means.
pub fn orders() -> Vec<&'static str> {
    ORDERS.iter().map(|(word, _)| *word).collect()
}

/// Which users are asked after, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserQuery {
    /// A piece of the id before the server's name, or of the display name; goes before `user_id`.
    pub name: Option<String>,
    /// A piece of the id.
    pub user_id: Option<String>,
    /// Whether guests are wanted, too.
    pub guests: bool,
    /// Whether closed accounts alone, or open ones alone, are wanted.
    pub deactivated: Option<bool>,
    /// Whether locked accounts are wanted, too.
    pub locked: bool,
    /// Whether admins alone, or all others alone, are wanted.
    pub admins: Option<bool>,
    /// Types of users that are not wanted; the empty one is that of those without a type.
    pub not_types: Vec<String>,
    /// One of [`orders`]; any other is the first of them.
    pub order_by: String,
    /// Whether the order is turned round.
    pub is_backwards: bool,
    /// How many are left out before the first.
    pub from: i64,
    /// How many at most.
    pub limit: i64,
}

/// A user of the list.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ListedUser {
    /// Their id.
    pub name: String,
    /// `bot`, `support`, or nothing.
    pub user_type: Option<String>,
    /// Whether they are a guest.
    pub is_guest: bool,
    /// Whether they are a server admin.
    pub admin: bool,
    /// Whether the account is closed.
    pub deactivated: bool,
    /// Whether others hear nothing of them.
    pub shadow_banned: bool,
    /// What they are called.
    pub displayname: Option<String>,
    /// The address of their picture.
    pub avatar_url: Option<String>,
    /// When the account was made, in milliseconds.
    pub creation_ts: Option<i64>,
    /// Whether their data was asked to be erased.
    pub erased: bool,
    /// When a device of theirs was last seen.
    pub last_seen_ts: Option<i64>,
    /// Whether the account is locked.
    pub locked: bool,
}

/// A page of the users, and how many there are in all. Walks `users` once, and of a page's users alone `profiles`,
/// `erased_users` and `devices` by their keys, but where the order or the search is by what stands there.
pub fn page(db: &Db, query: &UserQuery) -> Result<(Vec<ListedUser>, i64), Error> {
    let doing = "list the users";
    let sql = Statements::of(db, query);
    let not_types = json_list(&query.not_types);
    let name = query.name.as_ref().map(|name| name.to_lowercase());
    let of_name = name.as_ref().map_or_else(
        || {
            let id = query.user_id.clone().unwrap_or_default();
            format!("%{}%", id.to_lowercase())
        },
        |name| format!("@%{name}%:%"),
    );
    let of_display = format!("%{}%", name.unwrap_or_default());
    let total = db.count(doing, &sql.count, params![of_name, of_display, not_types])?;
    let users = db.rows(
        doing,
        &sql.page,
        params![of_name, of_display, not_types, query.limit, query.from],
        |r| {
            Ok(ListedUser {
                name: r.get(0)?,
                user_type: r.get(1)?,
                is_guest: r.get::<_, i64>(2)? != 0,
                admin: r.get::<_, i64>(3)? != 0,
                deactivated: r.get::<_, i64>(4)? != 0,
                shadow_banned: r.get(5)?,
                displayname: r.get(6)?,
                avatar_url: r.get(7)?,
                creation_ts: r.get::<_, Option<i64>>(8)?.map(|s| s.saturating_mul(1000)),
                erased: r.get(9)?,
                last_seen_ts: r.get(10)?,
                locked: r.get(11)?,
            })
        },
    )?;
    Ok((users, total))
}

/// The two statements of a page.
struct Statements {
    count: String,
    page: String,
}

impl Statements {
    /// Both bind `$1` a pattern of the id, `$2` one of the display name, `$3` types that are not wanted, as a JSON array;
    /// the page `$4` how many at most, `$5` how many are left out.
    fn of(db: &Db, query: &UserQuery) -> Self {
        let column = |name: &'static str| match db.catalog().has_column("users", name) {
            true => format!("coalesce(u.{name}, FALSE)"),
            false => "FALSE".to_owned(),
        };
        let (shadow_banned, locked) = (column("shadow_banned"), column("locked"));
        let seen = |table: &str| {
            format!("(SELECT max(s.last_seen) FROM {table} s WHERE s.user_id = u.name)")
        };
        let last_seen = match db.catalog().has("user_ips") {
            true => format!("coalesce({}, {})", seen("devices"), seen("user_ips")),
            false => seen("devices"),
        };
        let order = ORDERS.iter().find(|(word, _)| *word == query.order_by);
        let order = order
            .or(ORDERS.first())
            .map_or("u.name", |(_, order)| order);
        let order = order
            .replace("SHADOW_BANNED", &shadow_banned)
            .replace("LAST_SEEN", &last_seen)
            .replace("LOCKED", &locked);
        let direction = if query.is_backwards { "DESC" } else { "ASC" };

        // What is not asked for still has its place among the parameters.
        let mut wanted = vec![match (&query.name, &query.user_id) {
            (Some(_), _) => "(u.name LIKE $1 OR lower(p.displayname) LIKE $2)".to_owned(),
            (None, Some(_)) => "(u.name LIKE $1 AND CAST($2 AS TEXT) IS NOT NULL)".to_owned(),
            (None, None) => {
                "(CAST($1 AS TEXT) IS NOT NULL AND CAST($2 AS TEXT) IS NOT NULL)".to_owned()
            }
        }];
        let types = "(SELECT value FROM json_each($3))";
        let has_types = query.not_types.iter().any(|kind| !kind.is_empty());
        let excludes_untyped = query.not_types.iter().any(String::is_empty);
        wanted.push(match (has_types, excludes_untyped) {
            (_, true) => format!("(u.user_type IS NOT NULL AND u.user_type NOT IN {types})"),
            (true, false) => format!("(u.user_type IS NULL OR u.user_type NOT IN {types})"),
            (false, false) => "CAST($3 AS TEXT) IS NOT NULL".to_owned(),
        });
        if !query.guests {
            wanted.push("u.is_guest = 0".to_owned());
        }
        match query.deactivated {
            Some(true) => wanted.push("u.deactivated = 1".to_owned()),
            Some(false) => wanted.push("u.deactivated = 0".to_owned()),
            None => {}
        }
        if !query.locked {
            wanted.push(format!("NOT {locked}"));
        }
        match query.admins {
            Some(true) => wanted.push("u.admin = 1".to_owned()),
            Some(false) => wanted.push("u.admin = 0".to_owned()),
            None => {}
        }
        let wanted = wanted.join(" AND ");
        // A profile is kept by what stands in the id before the server's name.
        let profile = "p.user_id = substr(u.name, 2, instr(u.name, ':') - 2)";
        let from = format!("FROM users u LEFT JOIN profiles p ON {profile} WHERE {wanted}");
        let page = format!(
            "SELECT u.name, u.user_type, u.is_guest, u.admin, u.deactivated, {shadow_banned}, p.displayname, p.avatar_url,
                    u.creation_ts, EXISTS (SELECT 1 FROM erased_users e WHERE e.user_id = u.name), {last_seen}, {locked}
               FROM (SELECT u.name AS chosen {from} ORDER BY {order} {direction}, u.name LIMIT $4 OFFSET $5) few
               JOIN users u ON u.name = few.chosen
               LEFT JOIN profiles p ON {profile}
              ORDER BY {order} {direction}, u.name"
        );
        Self {
            count: format!("SELECT count(*) {from}"),
            page,
        }
    }
}
