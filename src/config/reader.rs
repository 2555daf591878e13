//! The environment as a value, and the reader that takes variables from it one by one and collects every mistake.

use std::{collections::BTreeMap, ffi::OsString, fmt, num::NonZeroUsize, thread};

use super::variable::{Setting, VARIABLES, Variable};

/// A snapshot of variables, and the number of cores the process may use.
#[derive(Clone)]
pub struct Environment {
    pub(super) variables: BTreeMap<String, OsString>,
    pub(super) cores: NonZeroUsize,
}

impl Environment {
    /// The process's own environment: the variables of [`VARIABLES`], and no other.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the process's environment")]
    pub fn process() -> Self {
        let set = VARIABLES.iter().filter_map(|variable| Some((variable.name, std::env::var_os(variable.name)?)));
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { cores, ..set.collect() }
    }
}

/// The variables given, on one core.
impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let variables = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, cores: NonZeroUsize::MIN }
    }
}

/// Names only: the values hold passwords.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("variables", &self.variables.keys()).field("cores", &self.cores).finish()
    }
}

/// Every variable that cannot be used, with what is wrong and how to mend it; never empty. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} mistake{} in the environment\n  {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n  "))]
pub struct Mistakes(pub Vec<String>);

/// A check's verdict on a value. Neither text repeats the value: the check does not know whether it is secret.
#[derive(Debug, PartialEq, Eq)]
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

/// Longer values are cut in a report: the variable's name finds the rest.
const SHOWN_CHARACTERS: usize = 80;

/// Reads on after a mistake, with the default of the type in place of the value; [`Reader::finish`] discards the whole.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub(super) mistakes: Vec<String>,
    /// Remarks for the start block. None may hold a value that may be secret.
    pub(super) notes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: Vec::new(), notes: Vec::new() }
    }

    /// `value`, unless there was a mistake.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(Mistakes(self.mistakes)) }
    }

    /// The variable's text without surrounding blanks; `None` if it is unset, blank or not UTF-8.
    pub(super) fn text(&mut self, variable: &Variable) -> Option<&'a str> {
        let value = self.environment.variables.get(variable.name)?;
        if value.to_str().is_none() {
            self.keep(variable, None, &Wrong::new("not UTF-8", "write it as plain text"));
        }
        value.to_str().map(str::trim).filter(|text| !text.is_empty())
    }

    /// The variable's value, or that of the table's default.
    pub(super) fn value<T: Default>(&mut self, setting: &Setting<T>) -> T {
        let text = self.text(&setting.variable).unwrap_or(setting.variable.default);
        self.check(setting, text).unwrap_or_default()
    }

    /// The variable's value, if it is set.
    pub(super) fn optional<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let text = self.text(&setting.variable)?;
        self.check(setting, text)
    }

    /// The value of `text`; a mistake is kept.
    pub(super) fn check<T>(&mut self, setting: &Setting<T>, text: &str) -> Option<T> {
        (setting.check)(text).map_err(|wrong| self.keep(&setting.variable, Some(text), &wrong)).ok()
    }

    /// Keeps a mistake once, though its variable may be read for two purposes. The text is shown unless it is secret or
    /// may carry a password, as `user:password@host`.
    pub(super) fn keep(&mut self, variable: &Variable, text: Option<&str>, Wrong { problem, mend }: &Wrong) {
        // Docker's env files keep quotes as part of the value.
        let is_quoted = text.is_some_and(|text| text.starts_with(['"', '\'']));
        let mend = if is_quoted { "remove the quotes around it" } else { mend };
        let shown = text.filter(|text| !variable.secret && !text.contains('@')).map(|text| {
            let shown = text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug);
            format!("=\"{}\"", shown.collect::<String>())
        });
        let mistake = format!("{}{}: {problem}; {mend}", variable.name, shown.unwrap_or_default());
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::variable::PORT, *};

    #[test]
    fn a_mistake_hides_what_may_be_a_password_and_cuts_what_is_long() {
        let said = |text: &str| {
            let environment = [("PORT", text)].into_iter().collect();
            let mut reader = Reader::new(&environment);
            reader.keep(&PORT.variable, Some(text), &Wrong::new("no", "mend"));
            reader.mistakes.remove(0)
        };
        assert_eq!(said("x\n"), r#"PORT="x\n": no; mend"#);
        assert_eq!(said("user:pass@host"), "PORT: no; mend");
        assert_eq!(said(&"a".repeat(500)), format!(r#"PORT="{}": no; mend"#, "a".repeat(80)));
        let mistakes = Mistakes(vec!["PORT: no; mend".to_owned(); 2]);
        assert_eq!(mistakes.to_string(), "2 mistakes in the environment\n  PORT: no; mend\n  PORT: no; mend");
    }
}
