//! The patterns of `PSUBSCRIBE`.
//!
//! Answers for: matching as redis does (`*`, `?`, `[a-z]`, `[^a]`, `\`), in time bounded by the product of
//! the two lengths, whatever the pattern.
//! Must not know: who subscribed.

/// A pattern, ready to be matched many times.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

#[derive(Debug, PartialEq)]
enum Token {
    AnyRun,
    AnyByte,
    Byte(u8),
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

impl Token {
    fn accepts(&self, byte: u8) -> bool {
        match self {
            Self::AnyRun => false,
            Self::AnyByte => true,
            Self::Byte(wanted) => *wanted == byte,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&byte)) != *negated
            }
        }
    }
}

impl Pattern {
    /// Every byte string is a pattern: an unfinished class ends with the text, a last `\` stands for itself.
    pub(super) fn new(text: &[u8]) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let [first, after @ ..] = rest {
            rest = after;
            let token = match (first, after) {
                (b'*', _) if tokens.last() == Some(&Token::AnyRun) => continue,
                (b'*', _) => Token::AnyRun,
                (b'?', _) => Token::AnyByte,
                (b'[', _) => {
                    let (class, after) = class(after);
                    rest = after;
                    class
                }
                (b'\\', [escaped, after @ ..]) => {
                    rest = after;
                    Token::Byte(*escaped)
                }
                (byte, _) => Token::Byte(*byte),
            };
            tokens.push(token);
        }
        Self { tokens }
    }

    /// Whether the whole of `text` fits.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let (mut token, mut byte) = (0, 0);
        // Only the last run needs to grow: whatever an earlier one could gain, the last can gain as well.
        let mut last_run = None;
        while byte < text.len() {
            match self.tokens.get(token) {
                Some(Token::AnyRun) => {
                    last_run = Some((token, byte));
                    token += 1;
                }
                Some(other) if other.accepts(text[byte]) => {
                    token += 1;
                    byte += 1;
                }
                _ => {
                    let Some((run, start)) = last_run else {
                        return false;
                    };
                    last_run = Some((run, start + 1));
                    token = run + 1;
                    byte = start + 1;
                }
            }
        }
        self.tokens[token..].iter().all(|left| *left == Token::AnyRun)
    }
}

/// Reads a class after its opening bracket; returns it with what follows.
fn class(text: &[u8]) -> (Token, &[u8]) {
    let (negated, mut rest) = match text {
        [b'^', after @ ..] => (true, after),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        rest = match rest {
            [] => break,
            [b'\\', escaped, after @ ..] => {
                ranges.push((*escaped, *escaped));
                after
            }
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [from, b'-', to, after @ ..] => {
                ranges.push((*from.min(to), *from.max(to)));
                after
            }
            [byte, after @ ..] => {
                ranges.push((*byte, *byte));
                after
            }
        };
    }
    (Token::Class { negated, ranges }, rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn matches_as_redis_does() {
        let cases = [
            ("chatbot/*", "chatbot/publish", true),
            ("chatbot/*", "chatbot/", true),
            ("chatbot/*", "chatbots", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**a**", "bab", true),
            ("h?llo", "hallo", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("h[\\]]llo", "h]llo", true),
            ("h[]llo", "h]llo", false),
            ("h[^]llo", "hxllo", true),
            ("[ab", "b", true),
            ("[", "[", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a\\", "a\\", true),
            ("a*b*c", "aXXbYYbc", true),
            ("a*b*c", "aXXbYYbd", false),
            ("user-[0-9]*", "user-42", true),
        ];
        for (pattern, text, fits) in cases {
            assert_eq!(Pattern::new(pattern.as_bytes()).matches(text.as_bytes()), fits, "{pattern} against {text}");
        }
    }

    #[test]
    fn many_runs_take_no_longer_than_one() {
        let pattern = Pattern::new("a*".repeat(500).as_bytes());
        assert!(!pattern.matches(&[vec![b'a'; 400], vec![b'b'; 600]].concat()));
    }

    /// The rule read word for word, with all the time in the world.
    fn slowly(tokens: &[Token], text: &[u8]) -> bool {
        match (tokens, text) {
            ([], _) => text.is_empty(),
            ([Token::AnyRun, rest @ ..], _) => (0..=text.len()).any(|taken| slowly(rest, &text[taken..])),
            ([first, rest @ ..], [byte, after @ ..]) => first.accepts(*byte) && slowly(rest, after),
            ([_, ..], []) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_word_for_word_rule(pattern in r"[*?ab\[\]^\\-]{0,10}", text in "[ab*-]{0,10}") {
            let pattern = Pattern::new(pattern.as_bytes());
            prop_assert_eq!(pattern.matches(text.as_bytes()), slowly(&pattern.tokens, text.as_bytes()));
        }

        #[test]
        fn no_bytes_panic(pattern in prop::collection::vec(any::<u8>(), 0..60), text in prop::collection::vec(any::<u8>(), 0..60)) {
            Pattern::new(&pattern).matches(&text);
        }
    }
}
