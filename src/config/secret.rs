//! A text that must not be seen, neither in logs nor in error reports.

use std::{fmt, sync::Arc};

/// A password or key. `Debug` says `[redacted]`; the text itself has to be asked for by name. Clones share the text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }

    /// The text itself, to be handed to Redis or to derive a key from.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it could be guessed: what is sealed with it can be attacked offline.
    pub(super) fn is_short(&self) -> bool {
        self.0.chars().count() < 16
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "[redacted] Some(\n    [redacted],\n)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
