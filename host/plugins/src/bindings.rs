//! What wasmtime makes of `wit/`: the only place that knows the shape in which values cross into a component.
//!
//! Never used outside this crate: callers see the types of `placement`, `policy` and `template`.
#![allow(missing_docs, missing_debug_implementations, clippy::all)]

pub(crate) mod described {
    wasmtime::component::bindgen!({
        path: ["../../wit/types"],
        world: "dwcp:types/described",
    });
}

pub(crate) mod placement {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/placement"],
        world: "dwcp:placement/placement",
    });
}

pub(crate) mod policy {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/policy"],
        world: "dwcp:policy/policy",
    });
}

pub(crate) mod template {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/template"],
        world: "dwcp:template/template",
    });
}
