//! The environment as a value, and the reader that takes variables from it one by one and collects every mistake.

use std::{collections::BTreeMap, ffi::OsString, fmt, num::NonZeroUsize, thread};

use super::{
    mistake::{Mistake, Mistakes, Wrong},
    variable::{VARIABLES, Variable},
};

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

/// Reads on after a mistake, with the default of the type in place of the value; [`Reader::finish`] discards the whole.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub(super) mistakes: Vec<Mistake>,
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
            self.keep(Mistake::hidden(variable.name, Wrong::new("not UTF-8", "write it as plain text")));
        }
        value.to_str().map(str::trim).filter(|text| !text.is_empty())
    }

    /// The variable's value, or that of the table's default.
    pub(super) fn value<T: Default>(&mut self, variable: &Variable, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> T {
        let text = self.text(variable).unwrap_or(variable.default);
        self.check(variable, text, parse(text)).unwrap_or_default()
    }

    /// The variable's value, if it is set.
    pub(super) fn optional<T>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&'a str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let text = self.text(variable)?;
        self.check(variable, text, parse(text))
    }

    /// The value that `text` was parsed to; a mistake is kept.
    pub(super) fn check<T>(&mut self, variable: &Variable, text: &str, parsed: Result<T, Wrong>) -> Option<T> {
        let mut wrong = match parsed {
            Ok(value) => return Some(value),
            Err(wrong) => wrong,
        };
        if text.starts_with(['"', '\'']) {
            // Docker's env files keep quotes as part of the value.
            "remove the quotes around it".clone_into(&mut wrong.mend);
        }
        self.keep(if variable.secret {
            Mistake::hidden(variable.name, wrong)
        } else {
            Mistake::shown(variable.name, text, wrong)
        });
        None
    }

    /// Keeps a mistake once, though its variable may be read for two purposes.
    fn keep(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Keeps a remark for the start block. It must not hold a value that may be secret.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
