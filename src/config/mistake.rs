//! What is wrong with a variable, in words that say how to mend it.

use std::fmt;

/// Longer values are cut in a report: the variable's name finds the rest.
const SHOWN_CHARACTERS: usize = 80;

/// One variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    variable: &'static str,
    /// Cut and escaped; absent where it is or may hold a secret.
    value: Option<String>,
    wrong: Wrong,
}

impl Mistake {
    /// A mistake that shows its value, unless that may carry a password (`user:password@host`).
    pub(super) fn shown(variable: &'static str, value: &str, wrong: Wrong) -> Self {
        let shown = || value.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
        Self { variable, value: (!value.contains('@')).then(shown), wrong }
    }

    /// A mistake that does not show its value.
    pub(super) fn hidden(variable: &'static str, wrong: Wrong) -> Self {
        Self { variable, value: None, wrong }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.as_ref().map(|value| format!("=\"{value}\"")).unwrap_or_default();
        write!(f, "{}{value}: {}; {}", self.variable, self.wrong.problem, self.wrong.mend)
    }
}

/// Every mistake of the environment, one per line, never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, plural) = (self.0.len(), if self.0.len() == 1 { "" } else { "s" });
        write!(f, "{number} mistake{plural} in the environment")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// A parser's verdict on a value. Neither text repeats the value: the parser does not know whether it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What is wrong, as a lowercase fragment.
    pub(super) problem: String,
    /// What to do about it, in the imperative.
    pub(super) mend: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { problem: problem.into(), mend: mend.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_variable_the_value_and_the_mend() {
        let mistake = Mistake::shown("PORT", "x\n", Wrong::new("not a number", "give one"));
        assert_eq!(mistake.to_string(), r#"PORT="x\n": not a number; give one"#);
        let mistakes = Mistakes(vec![mistake.clone(), mistake]);
        assert_eq!(mistakes.to_string().lines().next(), Some("2 mistakes in the environment"));
        assert_eq!(mistakes.to_string().lines().count(), 3);
    }

    #[test]
    fn hides_what_may_be_a_password_and_cuts_what_is_long() {
        let wrong = || Wrong::new("no", "mend");
        assert_eq!(Mistake::shown("X", "user:pass@host", wrong()).to_string(), "X: no; mend");
        assert_eq!(Mistake::shown("X", &"a".repeat(500), wrong()).value.map(|v| v.len()), Some(80));
    }
}
