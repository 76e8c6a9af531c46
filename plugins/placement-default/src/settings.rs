//! What an operator may set: the weights, and what a capacity is for.
//!
//! What always holds: weights are not negative and sum to 1.

use serde::Deserialize;

/// JSON Schema of the configuration.
pub const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "profile": {
      "enum": ["report", "source"], "default": "report",
      "description": "report: latency .30, cost .25, capacity .20, affinity .15, policy .10. source: health .15 and priority .10 in place of the last two."
    },
    "strategy": {
      "enum": ["balanced", "latency", "cost", "binpack"], "default": "balanced",
      "description": "latency and cost give that factor 0.7 and the profile 0.3; binpack prefers full hosts."
    },
    "cost_scale_micros": {
      "type": "integer", "minimum": 1, "default": 500000,
      "description": "Price an hour that is worth nothing, where a request states no limit of its own."
    }
  }
}"#;

/// What a part of the score looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Factor {
    Latency,
    Cost,
    Capacity,
    Affinity,
    Policy,
    Health,
    Priority,
}

impl Factor {
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Cost => "cost",
            Self::Capacity => "capacity",
            Self::Affinity => "affinity",
            Self::Policy => "policy",
            Self::Health => "health",
            Self::Priority => "priority",
        }
    }
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Profile {
    #[default]
    Report,
    Source,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    #[default]
    Balanced,
    Latency,
    Cost,
    Binpack,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    profile: Profile,
    strategy: Strategy,
    cost_scale_micros: u64,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            strategy: Strategy::default(),
            cost_scale_micros: 500_000,
        }
    }
}

/// The configuration, ready for use.
pub struct Settings {
    /// The factors and their shares of the score.
    pub factors: [(Factor, f64); 5],
    /// Whether a full host is better than an empty one.
    pub binpack: bool,
    /// At least 1.
    pub cost_scale_micros: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(Written::default())
    }
}

impl Settings {
    /// Reads the configuration. Errors: a sentence for the operator.
    pub fn read(json: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(json)
            .map_err(|error| format!("The configuration cannot be used: {error}."))?;
        if written.cost_scale_micros == 0 {
            return Err("`cost_scale_micros` must be at least 1.".to_owned());
        }
        Ok(Self::from(written))
    }
}

impl From<Written> for Settings {
    fn from(written: Written) -> Self {
        let (fourth, fifth) = match written.profile {
            Profile::Report => (Factor::Affinity, Factor::Policy),
            Profile::Source => (Factor::Health, Factor::Priority),
        };
        let mut factors = [
            (Factor::Latency, 0.30),
            (Factor::Cost, 0.25),
            (Factor::Capacity, 0.20),
            (fourth, 0.15),
            (fifth, 0.10),
        ];
        let favourite = match written.strategy {
            Strategy::Latency => Some(Factor::Latency),
            Strategy::Cost => Some(Factor::Cost),
            Strategy::Balanced | Strategy::Binpack => None,
        };
        if let Some(favourite) = favourite {
            for (factor, weight) in &mut factors {
                *weight = 0.3 * *weight + if *factor == favourite { 0.7 } else { 0.0 };
            }
        }
        Self {
            factors,
            binpack: written.strategy == Strategy::Binpack,
            cost_scale_micros: written.cost_scale_micros,
        }
    }
}
