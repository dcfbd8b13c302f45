//! Reading our own source: what is code, what is text, what is comment.

use std::fs;
use std::path::Path;

/// One file under `src`, without its tests.
pub struct Source {
    /// Below `src`, with `/`.
    pub path: String,
    /// How many lines it has, tests included.
    pub lines: usize,
    /// The code, without comments and with every text empty.
    pub code: String,
    /// The texts in it, as the compiler understands them.
    pub texts: Vec<String>,
}

/// Every file under `src`.
pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 20, "this is not our source");
    found
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(root, &path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = with_macros(root, &fs::read_to_string(&path).expect("a file"));
            let name = path.strip_prefix(root).expect("below the root");
            found.push(Source::read(&name.to_string_lossy(), &text));
        }
    }
}

/// The one macro that is part of statements, in the place of its calls, so that each statement is one text.
fn with_macros(root: &Path, text: &str) -> String {
    const CALL: &str = "has_expired!(";
    if !text.contains(CALL) || text.contains("macro_rules! has_expired") {
        return text.to_owned();
    }
    let of = fs::read_to_string(root.join("store/expiry.rs")).expect("the macro's file");
    // The macro that it calls itself is one text.
    let first = of
        .split("macro_rules! first_possible")
        .nth(1)
        .and_then(|rest| rest.split('"').nth(1));
    let first = format!("\"{}\"", first.expect("its text"));
    let of = of.replace("$crate::store::expiry::first_possible!()", &first);
    let body = of.split("        concat!(\n").nth(1).expect("its body");
    let body = &body[..body.find("\n        )").expect("its end")];
    let mut joined = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(CALL) {
        let before = rest[..at].trim_end().trim_end_matches(',').trim_end();
        joined.push_str(before.strip_suffix('"').expect("a text before the call"));
        let (call, after) = rest[at..].split_once(')').expect("its end");
        // A cast is in brackets of its own.
        let (mut call, mut after) = (call.to_owned(), after);
        while call.matches('(').count() > call.matches(')').count() + 1 {
            let (more, left) = after.split_once(')').expect("its end");
            call = format!("{call}){more}");
            after = left;
        }
        let (_, said) = split(&call);
        let columns = [
            "near",
            "live_end",
            "live_before",
            "ts",
            "first_known",
            "backfilled_after",
        ];
        let args: Vec<String> = match &said[..] {
            [e, table] => {
                let of_table = columns.map(|column| format!("{table}.{column}"));
                std::iter::once(e.clone()).chain(of_table).collect()
            }
            all => all.to_vec(),
        };
        let names = [
            "$e,",
            "$($near),+",
            "$($end),+",
            "$($before),+",
            "$($ts),+",
            "$($known),+",
            "$($backfilled),+",
        ];
        let mut expanded = body.to_owned();
        for (name, arg) in names.iter().zip(&args) {
            expanded = expanded.replace(name, &format!("\"{arg}\","));
        }
        joined.push_str(&split(&expanded).1.concat());
        let after = after.trim_start().trim_start_matches(',').trim_start();
        rest = after.strip_prefix('"').expect("a text after the call");
    }
    joined.push_str(rest);
    joined
}

impl Source {
    fn read(path: &str, text: &str) -> Self {
        let lines = text.lines().count();
        // Tests come last, and may name and say what they like.
        let end = match text.find("#[cfg(test)]\nmod tests") {
            _ if path.ends_with("/tests.rs") => 0,
            found => found.unwrap_or(text.len()),
        };
        let (code, texts) = split(&text[..end]);
        Self {
            path: path.to_owned(),
            lines,
            code,
            texts,
        }
    }

    /// The module directly below the crate that it belongs to; `lib.rs` and `main.rs` belong to none.
    pub fn module(&self) -> Option<&str> {
        let first = self.path.split('/').next().unwrap_or("");
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main"].contains(&name)).then_some(name)
    }

    /// The first names after `crate::`, and after a `super::` that means the crate.
    pub fn names_of_crate(&self) -> Vec<String> {
        let is_top = !self.path.contains('/') || self.path.ends_with("/mod.rs");
        let is_direct = is_top && self.path.matches('/').count() <= 1;
        let mut names = Vec::new();
        for (prefix, applies) in [("crate::", true), ("super::", is_direct)] {
            for (at, _) in self.code.match_indices(prefix).filter(|_| applies) {
                // Not the end of `super::super::` or of some other path.
                if self.code[..at].ends_with([':', '_']) {
                    continue;
                }
                names.extend(first_names(&self.code[at + prefix.len()..]));
            }
        }
        names
    }
}

/// `a` of `a::b`; `a` and `b` of `{a::c, b}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let is_of_name = |c: &char| c.is_alphanumeric() || *c == '_';
        text.trim_start().chars().take_while(is_of_name).collect()
    };
    let Some(list) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&list[begins..at]));
                begins = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Code without comments and texts, and the texts.
fn split(source: &str) -> (String, Vec<String>) {
    let (mut code, mut texts) = (String::new(), Vec::new());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = &rest[rest.find("*/").map_or(rest.len(), |end| end + 2)..];
        } else if let Some(fence) = raw_fence(rest) {
            let begin = rest.find('"').expect("a fence has one") + 1;
            let end = begin + rest[begin..].find(&fence).expect("a text ends");
            texts.push(rest[begin..end].to_owned());
            code.push_str("\"\"");
            rest = &rest[end + fence.len()..];
        } else if c == '"' {
            let (text, length) = plain(&rest[1..]);
            texts.push(text);
            code.push_str("\"\"");
            rest = &rest[1 + length..];
        } else if let Some(length) = character(rest) {
            code.push_str("' '");
            rest = &rest[length..];
        } else {
            code.push(c);
            // A word at a time, so that the `r` of `for` begins no raw text.
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if word(c) {
                rest.find(|c| !word(c)).unwrap_or(rest.len())
            } else {
                c.len_utf8()
            };
            code.push_str(&rest[c.len_utf8()..length]);
            rest = &rest[length..];
        }
    }
    (code, texts)
}

/// What ends a raw text that begins here.
fn raw_fence(rest: &str) -> Option<String> {
    let hashes = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let count = hashes.find(|c| c != '#')?;
    hashes[count..]
        .starts_with('"')
        .then(|| format!("\"{}", "#".repeat(count)))
}

/// A text up to its closing quote, and how many bytes it takes with it.
fn plain(rest: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                // A broken line goes on at its first letter.
                Some('\n') => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                Some(other) => text.push(other),
                None => {}
            },
            c => text.push(c),
        }
    }
    panic!("a text does not end: {text}");
}

/// How long the character is that begins here; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if let Some(escaped) = inside.strip_prefix('\\') {
        let first = escaped.chars().next()?.len_utf8();
        return escaped[first..].find('\'').map(|end| 2 + first + end + 1);
    }
    let first = inside.chars().next()?.len_utf8();
    inside[first..].starts_with('\'').then_some(2 + first)
}
