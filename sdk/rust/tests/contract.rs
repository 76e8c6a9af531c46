//! The SDK's types are the API's: for each schema of the document an instance is made with every field and every word,
//! read into the SDK's type and written again, and nothing may be lost on the way.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use dwcp_sdk::types::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

fn document() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/api/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// All the instances worth looking at: one with every field, and one for each word of each enumeration below it.
struct Maker {
    document: Value,
    /// Which word of every enumeration to take.
    word: usize,
    /// Words of the longest enumeration that was met.
    words: usize,
}

impl Maker {
    fn make(&mut self, schema: &Value) -> Value {
        if let Some(reference) = schema["$ref"].as_str() {
            let schema = self.document.pointer(&reference[1..]).unwrap().clone();
            return self.make(&schema);
        }
        if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let words: Option<Vec<Value>> = choices.iter().map(word).collect();
            if let Some(words) = words.filter(|words| !words.is_empty()) {
                return self.pick(&words);
            }
            let choice = choices
                .iter()
                .find(|choice| choice["type"] != "null")
                .unwrap();
            return self.make(choice);
        }
        if let Some(words) = schema["enum"].as_array() {
            return self.pick(words);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").unwrap().as_str(),
            kind => kind.as_str(),
        };
        match kind {
            Some("string") => json!("text"),
            Some("integer") => json!(7),
            Some("number") => json!(1.5),
            Some("boolean") => json!(true),
            Some("array") => json!([self.make(&schema["items"])]),
            Some("object") => self.object(schema),
            // Any JSON at all.
            None => json!({"any": ["thing", 1]}),
            Some(other) => panic!("the document uses {other}"),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            object.insert(name.clone(), self.make(property));
        }
        if schema["additionalProperties"].is_object() {
            object.insert("key".into(), self.make(&schema["additionalProperties"]));
        }
        Value::Object(object)
    }

    fn pick(&mut self, words: &[Value]) -> Value {
        self.words = self.words.max(words.len());
        words[self.word % words.len()].clone()
    }
}

/// The word of a choice that allows one only.
fn word(choice: &Value) -> Option<Value> {
    let only = choice["enum"].as_array().filter(|words| words.len() == 1);
    only.map(|words| words[0].clone())
}

fn check<T: Serialize + DeserializeOwned>(document: &Value, name: &str) {
    let schema = &document["components"]["schemas"][name];
    assert!(schema.is_object(), "the document has no {name}");
    let (mut word, mut words) = (0, 1);
    while word < words {
        let mut maker = Maker {
            document: document.clone(),
            word,
            words,
        };
        let instance = maker.make(schema);
        words = maker.words;
        word += 1;
        let read: T = serde_json::from_value(instance.clone())
            .unwrap_or_else(|error| panic!("{name}: {error}\n{instance:#}"));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(written, instance, "{name} loses something");
    }
}

/// How a schema's type is looked at.
type Check = fn(&Value, &str);

#[test]
fn every_schema_has_its_type() {
    let document = document();
    let checked: &[(&str, Check)] = &[
        ("AuditCheckpoint", check::<AuditCheckpoint>),
        ("AuditRecord", check::<AuditRecord>),
        ("Binding", check::<Binding>),
        ("BindingMode", check::<BindingMode>),
        ("Capacity", check::<Capacity>),
        ("CardInside", check::<CardInside>),
        ("CpuBaseline", check::<CpuBaseline>),
        ("Decision", check::<Decision>),
        ("Desired", check::<Desired>),
        ("DeviceStats", check::<DeviceStats>),
        ("DiskFormat", check::<DiskFormat>),
        ("DiskImage", check::<DiskImage>),
        ("DiskResize", check::<DiskResize>),
        ("DiskSpec", check::<DiskSpec>),
        ("Event", check::<Event>),
        ("ForkRequest", check::<ForkRequest>),
        ("GuestSetup", check::<GuestSetup>),
        ("Host", check::<Host>),
        ("HostAdd", check::<HostAdd>),
        ("HostCpu", check::<HostCpu>),
        ("Image", check::<Image>),
        ("MarketplaceItem", check::<MarketplaceItem>),
        ("MemoryTarget", check::<MemoryTarget>),
        ("MigrateRequest", check::<MigrateRequest>),
        ("Migration", check::<Migration>),
        ("MigrationPhase", check::<MigrationPhase>),
        ("Name", check::<String>),
        ("NetworkSpec", check::<NetworkSpec>),
        ("OfferedBaseline", check::<OfferedBaseline>),
        ("Operation", check::<Operation>),
        ("OperationState", check::<OperationState>),
        ("Base", check::<Base>),
        ("Origin", check::<Origin>),
        ("Placement", check::<Placement>),
        ("Plugin", check::<Plugin>),
        ("PluginInstall", check::<PluginInstall>),
        ("Policy", check::<Policy>),
        ("Problem", check::<Problem>),
        ("Progress", check::<Progress>),
        ("Proof", check::<Proof>),
        ("Resolve", check::<Resolve>),
        ("RestartPolicy", check::<RestartPolicy>),
        ("RestoreRequest", check::<RestoreRequest>),
        ("Round", check::<Round>),
        ("Side", check::<Side>),
        ("Snapshot", check::<Snapshot>),
        ("SnapshotCreate", check::<SnapshotCreate>),
        ("String", check::<String>),
        ("Template", check::<Template>),
        ("VcpuStats", check::<VcpuStats>),
        ("Vm", check::<Vm>),
        ("VmCreate", check::<VmCreate>),
        ("VmCreated", check::<VmCreated>),
        ("VmForked", check::<VmForked>),
        ("VmPhase", check::<VmPhase>),
        ("VmSpec", check::<VmSpec>),
        ("VmStats", check::<VmStats>),
    ];
    for (name, check) in checked {
        check(&document, name);
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in schemas.keys() {
        let known = checked.iter().any(|(checked, _)| checked == name);
        assert!(
            known || name.starts_with("Page_"),
            "{name} has no type in the SDK"
        );
    }
    check::<Page<Vm>>(&document, "Page_Vm");
}

#[test]
fn what_a_newer_host_adds_is_tolerated() {
    let document = document();
    let mut maker = Maker {
        document: document.clone(),
        word: 0,
        words: 1,
    };
    let mut vm = maker.make(&document["components"]["schemas"]["Vm"]);
    vm["new_field"] = json!({"deep": 1});
    vm["phase"] = json!("dreaming");
    let read: Vm = serde_json::from_value(vm).unwrap();
    assert_eq!(read.phase, VmPhase::Unknown);
}

#[test]
fn the_check_is_seen_to_fail() {
    /// `Resolve` with a field that the API does not have, and without the one that it has.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Wrong {
        #[serde(default)]
        fence: String,
    }
    let document = document();
    let failed = std::panic::catch_unwind(|| check::<Wrong>(&document, "Resolve"));
    assert!(failed.is_err());
}
