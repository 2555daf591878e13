//! The environment as a value, so that nothing but [`Environment::process`] depends on the process's own.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    num::NonZeroUsize,
    thread,
};

use super::variable::VARIABLES;

/// A snapshot of variables, and the number of cores the process may use.
#[derive(Clone)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
    cores: NonZeroUsize,
}

impl Environment {
    /// The process's own environment: the variables of [`VARIABLES`], and no other.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the process's environment")]
    pub fn process() -> Self {
        let set = VARIABLES.iter().filter_map(|variable| Some((variable.name, std::env::var_os(variable.name)?)));
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { cores, ..set.collect() }
    }

    /// The same environment on a machine with `cores` cores.
    #[must_use]
    pub fn with_cores(self, cores: NonZeroUsize) -> Self {
        Self { cores, ..self }
    }

    /// The same environment with `name` set to `value`.
    #[must_use]
    pub fn with(&self, name: &str, value: impl Into<OsString>) -> Self {
        let mut changed = self.clone();
        changed.variables.insert(name.to_owned(), value.into());
        changed
    }

    /// The same environment with `name` unset.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut changed = self.clone();
        changed.variables.remove(name);
        changed
    }

    /// Cores the process may use, at least 1.
    pub(super) fn cores(&self) -> usize {
        self.cores.get()
    }

    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str)
    }
}

/// One core, and the variables given.
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
