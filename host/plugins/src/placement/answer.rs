//! From the plugin's answer back to names.
//!
//! Always: nothing of an answer is believed unchecked: an index out of range, a missing decision or a number that is none
//! is a fault. Never: a judgement of the choice itself; hard constraints are checked again where the host reserves.

use super::{
    columns::NONE,
    fleet::{Answer, Batch, Candidate, Decision, Factor, Rejection, Request},
    mirror::Mirror,
    question::{Rows, cut},
};
use crate::{
    bindings::placement::exports::dwcp::placement::decisions as wit,
    fault::{Fault, FaultKind},
};
use std::collections::{BTreeMap, HashSet};

/// Checks the plugin's answer and gives it names.
pub(crate) fn answer(
    mirror: &Mirror,
    asked: &Batch,
    rows: &Rows,
    from: wit::Answer,
) -> Result<Answer, Fault> {
    let wrong = |what: String| {
        Fault::new(
            FaultKind::Answer,
            format!("The plugin's answer is wrong: {what}."),
        )
    };
    if from.decisions.len() != rows.of.len() {
        return Err(wrong(format!(
            "{} decisions for {} requests",
            from.decisions.len(),
            rows.of.len()
        )));
    }
    let factors: Vec<Factor> = from
        .factors
        .into_iter()
        .map(|f| Factor {
            name: f.name,
            weight: f.weight,
        })
        .collect();
    if factors.len() > 16
        || factors
            .iter()
            .any(|f| f.name.len() > 64 || !(0.0..=1.0).contains(&f.weight))
    {
        return Err(wrong("factors out of bounds".into()));
    }
    let mut decisions: BTreeMap<usize, Decision> = rows
        .impossible
        .iter()
        .map(|(position, reason)| {
            (
                *position,
                nowhere(mirror, &asked.requests[*position], reason),
            )
        })
        .collect();
    for (position, decision) in rows.of.iter().zip(from.decisions) {
        let request = &asked.requests[*position];
        let decision = named(mirror, asked, &factors, request, decision)
            .map_err(|what| wrong(format!("request {}: {what}", cut(&request.id))))?;
        decisions.insert(*position, decision);
    }
    Ok(Answer {
        factors,
        decisions: decisions.into_values().collect(),
    })
}

/// The decision of a request that the plugin was not asked about.
fn nowhere(mirror: &Mirror, request: &Request, reason: &str) -> Decision {
    Decision {
        request: request.id.clone(),
        chosen: None,
        reasons: Vec::new(),
        alternatives: Vec::new(),
        considered: 0,
        rejected: vec![Rejection {
            reason: reason.to_owned(),
            hosts: mirror.by_id.len() as u32,
        }],
    }
}

/// An answer to a batch of which no request was for the plugin.
pub(crate) fn nowhere_for_all(mirror: &Mirror, asked: &Batch, rows: &Rows) -> Answer {
    let decisions = rows
        .impossible
        .iter()
        .map(|(at, reason)| nowhere(mirror, &asked.requests[*at], reason));
    Answer {
        factors: Vec::new(),
        decisions: decisions.collect(),
    }
}

fn named(
    mirror: &Mirror,
    asked: &Batch,
    factors: &[Factor],
    request: &Request,
    from: wit::Decision,
) -> Result<Decision, String> {
    if from.reasons.len() > factors.len() || from.reasons.iter().any(|r| r.len() > 1_024) {
        return Err("reasons out of bounds".into());
    }
    if from.alternatives.len() > usize::from(asked.alternatives) {
        return Err(format!(
            "{} alternatives, {} were asked for",
            from.alternatives.len(),
            asked.alternatives
        ));
    }
    if from.rejected.len() > 16 || from.rejected.iter().any(|r| r.reason.len() > 128) {
        return Err("rejections out of bounds".into());
    }
    let mut seen = HashSet::new();
    let mut candidate = |from: wit::Candidate| -> Result<Candidate, String> {
        let host = mirror
            .slots
            .get(from.host as usize)
            .filter(|host| !host.id.is_empty())
            .ok_or_else(|| format!("there is no host {}", from.host))?;
        if !seen.insert(from.host) {
            return Err(format!("host {} is named twice", from.host));
        }
        let share = -1e-9..=1.0 + 1e-9;
        if from.values.len() != factors.len() || !from.values.iter().all(|v| share.contains(v)) {
            return Err("factor values out of bounds".into());
        }
        if !(-1e-6..=100.0 + 1e-6).contains(&from.score) {
            return Err(format!("a score of {}", from.score));
        }
        Ok(Candidate {
            host: host.id.clone(),
            score: from.score,
            values: from.values,
            cost_micros: from.cost_micros,
            latency_us: Some(from.latency_us).filter(|us| *us != NONE),
        })
    };
    Ok(Decision {
        request: request.id.clone(),
        chosen: from.chosen.map(&mut candidate).transpose()?,
        alternatives: from
            .alternatives
            .into_iter()
            .map(candidate)
            .collect::<Result<_, _>>()?,
        reasons: from.reasons,
        considered: from.considered,
        rejected: from
            .rejected
            .into_iter()
            .map(|r| Rejection {
                reason: r.reason,
                hosts: r.hosts,
            })
            .collect(),
    })
}
