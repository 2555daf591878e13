//! Which nodes could hear what was published, as far as the faults allowed.

use std::time::Duration;

use super::Publication;

/// A time in which a node may not have heard everything.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    pub(crate) node: usize,
    /// The name of the fault.
    pub(crate) cause: &'static str,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) nodes: usize,
    pub(crate) outages: Vec<Outage>,
}

impl Coverage {
    /// Whether some node heard it for certain.
    fn heard(&self, publication: &Publication) -> bool {
        let deaf = |node| {
            self.outages
                .iter()
                .any(|outage| outage.node == node && outage.from <= publication.ended && outage.to >= publication.began)
        };
        (0..self.nodes).any(|node| !deaf(node))
    }

    /// Whether nodes that tell each other what they heard could know that nothing was lost in between.
    pub(crate) fn allows_proof(&self, publications: &[Publication], from: Duration, to: Duration) -> bool {
        let during = |publication: &&Publication| publication.ended >= from && publication.began <= to;
        publications.iter().filter(during).all(|publication| self.heard(publication))
    }

    /// The last fault of a node that began in between.
    pub(crate) fn last_cause(&self, node: usize, from: Duration, to: Duration) -> Option<&'static str> {
        let during = |outage: &&Outage| outage.node == node && outage.to >= from && outage.from <= to;
        self.outages.iter().filter(during).max_by_key(|outage| outage.from).map(|outage| outage.cause)
    }
}
