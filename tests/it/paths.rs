//! Finds the paths a Rust source names, for [`crate::layers`]. Knows just enough of the language: comments, literals,
//! inline modules, and the braces of `use`.

/// A path in a source, with `super` and `self` worked out: it begins with `crate` or with the name of a crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// Where it ends, counted from 1.
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `::`
    Separator,
    Mark(char),
}

/// Every path of two or more segments in the source of the module at `place` (such as `hub/log`).
pub(crate) fn imports(place: &str, text: &str) -> Vec<Import> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // Inline modules by the depth of their braces.
    let (mut modules, mut depth): (Vec<(usize, &str)>, usize) = (Vec::new(), 0);
    let mut index = 0;
    while let Some(&(token, _)) = tokens.get(index) {
        match (token, tokens.get(index + 1), tokens.get(index + 2)) {
            (Token::Word("mod"), Some((Token::Word(name), _)), Some((Token::Mark('{'), _))) => {
                modules.push((depth, name));
                index += 2;
                continue;
            }
            (Token::Mark('{'), ..) => depth += 1,
            (Token::Mark('}'), ..) => {
                depth = depth.saturating_sub(1);
                modules.pop_if(|(outer, _)| *outer == depth);
            }
            // What follows a dot is a field or method.
            (Token::Mark('.'), ..) => index += 1,
            (Token::Word(_) | Token::Separator, ..) => {
                let global = token == Token::Separator;
                let here = place.split('/').chain(modules.iter().map(|(_, name)| *name)).collect::<Vec<_>>();
                let mut paths = Vec::new();
                index = tree(&tokens, index + usize::from(global), &[], &mut paths);
                let resolved = paths.into_iter().filter(|(path, _)| path.len() > 1);
                found.extend(resolved.map(|(path, line)| Import { line, segments: resolve(&here, &path, global) }));
                continue;
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// Reads one path, or all those of a group in braces; returns the index after it.
fn tree<'a>(
    tokens: &[(Token<'a>, usize)],
    mut index: usize,
    prefix: &[&'a str],
    found: &mut Vec<(Vec<&'a str>, usize)>,
) -> usize {
    let mut path = prefix.to_vec();
    let mut line = 0;
    loop {
        match tokens.get(index) {
            Some((Token::Word(word), at)) => {
                path.push(word);
                line = *at;
                index += 1;
            }
            Some((Token::Mark('{'), _)) if !path.is_empty() => {
                index += 1;
                while let Some(&(token, _)) = tokens.get(index) {
                    match token {
                        Token::Mark('}') => return index + 1,
                        Token::Word("as") => index += 2,
                        Token::Word(_) => index = tree(tokens, index, &path, found),
                        _ => index += 1,
                    }
                }
                return index;
            }
            _ => break,
        }
        match tokens.get(index) {
            Some((Token::Separator, _)) => index += 1,
            _ => break,
        }
    }
    if !path.is_empty() {
        found.push((path, line));
    }
    index.max(1)
}

fn resolve(here: &[&str], path: &[&str], global: bool) -> Vec<String> {
    let root = ["crate"];
    let mut module = match *here {
        ["main" | "lib"] => Vec::new(),
        _ => here.to_vec(),
    };
    let mut rest = path;
    let based = match path {
        _ if global => false,
        ["crate" | "loomio_channels", after @ ..] => {
            (module, rest) = (Vec::new(), after);
            true
        }
        ["self" | "super", ..] => {
            while let ["self" | "super", after @ ..] = rest {
                if rest[0] == "super" {
                    module.pop();
                }
                rest = after;
            }
            true
        }
        _ => false,
    };
    let segments: Vec<&str> = if based { [&root, module.as_slice(), rest].concat() } else { path.to_vec() };
    segments.into_iter().map(str::to_owned).collect()
}

/// Words, `::` and other marks with their lines; without comments and the inside of literals.
fn tokens(text: &str) -> Vec<(Token<'_>, usize)> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if rest.starts_with('\'') {
            character(rest)
        } else if rest.starts_with("::") {
            tokens.push((Token::Separator, line));
            2
        } else if word > 0 {
            tokens.push((Token::Word(&rest[..word]), line));
            word
        } else {
            if !first.is_whitespace() {
                tokens.push((Token::Mark(first), line));
            }
            first.len_utf8()
        };
        let (passed, after) = rest.split_at(length);
        line += passed.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Length of the block comment at the start; they nest.
fn comment(text: &str) -> usize {
    let (mut depth, mut length) = (0_usize, 0);
    loop {
        let rest = &text[length..];
        match (rest.starts_with("/*"), rest.starts_with("*/"), rest.chars().next()) {
            (_, _, None) => return length,
            (true, ..) => (depth, length) = (depth + 1, length + 2),
            (_, true, _) => (depth, length) = (depth - 1, length + 2),
            (.., Some(other)) => length += other.len_utf8(),
        }
        if depth == 0 {
            return length;
        }
    }
}

/// Length of the raw string at the start, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let body = after.trim_start_matches('#');
    let end = format!("\"{}", &after[..after.len() - body.len()]);
    let body = body.strip_prefix('"')?;
    Some(body.find(&end).map_or(text.len(), |length| text.len() - body.len() + length + end.len()))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = text[1..].find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

/// Length of a character literal, or of the quote that begins a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 1,
    }
}

#[test]
fn paths_are_worked_out() {
    let text = "use a::{b as c, d::{self, e}, *};\nmod inner { fn f(x: ::g::H) { x.i::<crate::j>(); super::k::l(); } }";
    let found: Vec<(usize, String)> =
        imports("m/n", text).into_iter().map(|import| (import.line, import.segments.join("::"))).collect();
    let expected =
        [(1, "a::b"), (1, "a::d::self"), (1, "a::d::e"), (2, "g::H"), (2, "crate::j"), (2, "crate::m::n::k::l")];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}
