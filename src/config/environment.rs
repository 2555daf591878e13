//! The environment as a value: only [`Environment::process`] depends on the process's own.

use std::{collections::BTreeMap, ffi::OsString, fmt, num::NonZeroUsize, thread};

use super::variable::VARIABLES;

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
