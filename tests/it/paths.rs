//! Finds the paths a Rust source names and the types it declares, for [`crate::layers`]. Works on tokens, since macros
//! and attributes name paths too, which a syntax tree keeps as tokens.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path in a source, with `super` and `self` worked out: it begins with `crate` or with the name of a crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// Where it ends, counted from 1.
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

/// Every path of two or more segments in the source of the module at `place` (such as `hub/log`).
pub(crate) fn imports(place: &str, text: &str) -> Vec<Import> {
    let mut here = match place {
        "main" | "lib" => Vec::new(),
        _ => place.split('/').map(str::to_owned).collect(),
    };
    let mut found = Vec::new();
    walk(&trees(text.parse().unwrap()), &mut here, &mut found);
    found
}

/// The structs, enums and traits that a source declares.
pub(crate) fn types(text: &str) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![trees(text.parse().unwrap())]);
    while let Some(trees) = open.pop() {
        for pair in trees.windows(2) {
            if let [TokenTree::Ident(kind), TokenTree::Ident(name)] = pair
                && ["struct", "enum", "trait"].iter().any(|word| kind == word)
            {
                found.push(name.to_string());
            }
        }
        open.extend(trees.into_iter().filter_map(|tree| match tree {
            TokenTree::Group(group) => Some(self::trees(group.stream())),
            _ => None,
        }));
    }
    found
}

fn trees(stream: TokenStream) -> Vec<TokenTree> {
    stream.into_iter().collect()
}

/// `here` is the module that the tokens are in.
fn walk(tokens: &[TokenTree], here: &mut Vec<String>, found: &mut Vec<Import>) {
    let mut rest = tokens;
    while let [first, after @ ..] = rest {
        match (first, after) {
            (TokenTree::Ident(word), [TokenTree::Ident(name), TokenTree::Group(body), after @ ..]) if word == "mod" => {
                here.push(name.to_string());
                walk(&trees(body.stream()), here, found);
                here.pop();
                rest = after;
            }
            (TokenTree::Group(group), after) => {
                walk(&trees(group.stream()), here, found);
                rest = after;
            }
            // A field or method.
            (TokenTree::Punct(dot), [TokenTree::Ident(_), after @ ..]) if dot.as_char() == '.' => rest = after,
            (TokenTree::Ident(_), _) => rest = path(rest, &[], false, here, found),
            (TokenTree::Punct(_), _) => {
                rest = match separator(rest) {
                    Some(after) => path(after, &[], true, here, found),
                    None => after,
                }
            }
            (TokenTree::Literal(_), after) => rest = after,
        }
    }
}

/// What follows `::`.
fn separator(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    match tokens {
        [TokenTree::Punct(one), TokenTree::Punct(two), after @ ..] if one.as_char() == ':' && two.as_char() == ':' => {
            Some(after)
        }
        _ => None,
    }
}

/// Reads one path below `prefix`, or all those of a group in braces; returns the tokens after it.
fn path<'a>(
    tokens: &'a [TokenTree],
    prefix: &[String],
    is_global: bool,
    here: &[String],
    found: &mut Vec<Import>,
) -> &'a [TokenTree] {
    let (mut path, mut rest, mut line) = (prefix.to_vec(), tokens, 0);
    loop {
        rest = match rest {
            [TokenTree::Ident(word), after @ ..] => {
                path.push(word.to_string());
                line = word.span().end().line;
                after
            }
            [TokenTree::Group(group), after @ ..] if group.delimiter() == Delimiter::Brace && !path.is_empty() => {
                let members = trees(group.stream());
                for member in members.split(|tree| matches!(tree, TokenTree::Punct(mark) if mark.as_char() == ',')) {
                    self::path(member, &path, is_global, here, found);
                }
                return after;
            }
            _ => break,
        };
        match separator(rest) {
            Some(after) => rest = after,
            None => break,
        }
    }
    if path.len() > 1 {
        found.push(Import { line, segments: resolve(here, path, is_global) });
    }
    rest
}

fn resolve(here: &[String], path: Vec<String>, is_global: bool) -> Vec<String> {
    let mut module = match path[0].as_str() {
        _ if is_global => return path,
        "crate" | "loomio_channels" => Vec::new(),
        "self" | "super" => here.to_vec(),
        _ => return path,
    };
    let mut rest = path.into_iter().peekable();
    while let Some(word) = rest.next_if(|word| ["crate", "loomio_channels", "self", "super"].contains(&word.as_str())) {
        if word == "super" {
            module.pop();
        }
    }
    ["crate".to_owned()].into_iter().chain(module).chain(rest).collect()
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

#[test]
fn types_are_found_wherever_they_are() {
    let text = "pub struct A<T>(T); mod m { fn f() { enum B {} } } pub(crate) trait C {} // struct D;\ntype E = A<u8>;";
    let mut found = types(text);
    found.sort();
    assert_eq!(found, ["A", "B", "C"]);
}
