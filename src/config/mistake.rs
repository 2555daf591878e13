//! What is wrong with a variable, in words that say how to mend it.

use std::{error::Error, fmt};

/// Longer values are cut in a report: the variable's name finds the rest.
const SHOWN_CHARACTERS: usize = 80;

/// One variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable's name.
    pub variable: &'static str,
    /// Its value, cut and escaped; absent where it is or may hold a secret.
    pub value: Option<String>,
    /// What is wrong, as a lowercase fragment that never repeats the value.
    pub problem: String,
    /// What to do about it, in the imperative.
    pub mend: String,
}

impl Mistake {
    /// A mistake which shows its value, unless that may carry a password (`user:password@host`).
    pub(super) fn shown(variable: &'static str, value: &str, wrong: Wrong) -> Self {
        let value =
            (!value.contains('@')).then(|| value.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect());
        Self { variable, value, ..Self::hidden(variable, wrong) }
    }

    /// A mistake which does not show its value.
    pub(super) fn hidden(variable: &'static str, Wrong { problem, mend }: Wrong) -> Self {
        Self { variable, value: None, problem, mend }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.variable)?;
        if let Some(value) = &self.value {
            write!(f, "=\"{value}\"")?;
        }
        write!(f, ": {}; {}", self.problem, self.mend)
    }
}

/// Every mistake of the environment, one per line, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 mistake in the environment")?,
            many => write!(f, "{many} mistakes in the environment")?,
        }
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl Error for Mistakes {}

/// A parser's verdict on a value. Neither text may repeat the value: the parser does not know whether it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) problem: String,
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
