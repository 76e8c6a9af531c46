//! What `soak` can run: every tier of `test`, and the search for bad inputs.
//!
//! What always holds: on the command line a tier has the same name here as there.
//!
//! What it must not know: how any part is run.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::tiers::Tier;

/// A part of a soak run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A tier of tests.
    Tier(Tier),
    /// The fuzz targets.
    Fuzz,
}

impl Part {
    /// What runs when nothing is asked for.
    pub const USUAL: [Part; 3] = [Part::Tier(Tier::Unit), Part::Tier(Tier::Faults), Part::Fuzz];

    /// The tier, if it is one.
    pub fn tier(self) -> Option<Tier> {
        match self {
            Part::Tier(tier) => Some(tier),
            Part::Fuzz => None,
        }
    }
}

impl ValueEnum for Part {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Part; Tier::ALL.len() + 1] = {
            let mut all = [Part::Fuzz; Tier::ALL.len() + 1];
            let mut at = 0;
            while at < Tier::ALL.len() {
                all[at] = Part::Tier(Tier::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Part::Tier(tier) => tier.to_possible_value(),
            Part::Fuzz => Some(
                PossibleValue::new("fuzz").help("Inputs that strangers could send, searched for"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_tier_and_the_search_have_a_name() {
        let names: Vec<String> = Part::value_variants()
            .iter()
            .map(|part| part.to_possible_value().unwrap().get_name().to_owned())
            .collect();
        assert_eq!(
            names,
            ["plugins", "unit", "kvm", "nested", "faults", "fuzz"]
        );
        assert_eq!(Part::from_str("kvm", false), Ok(Part::Tier(Tier::Kvm)));
    }
}
