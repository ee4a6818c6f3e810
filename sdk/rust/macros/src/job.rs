//! `#[job]`: keeps the function and, on the wasm target, exports it as the component's job.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, ItemFn, Result, spanned::Spanned};

pub fn expand(arguments: &TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new(
            arguments.span(),
            "#[tidemill::job] takes no arguments; the job is named in tidemill.toml",
        ));
    }
    let function: ItemFn = syn::parse2(item).map_err(|e| {
        Error::new(e.span(), "#[tidemill::job] goes on a function: `fn my_job(flow: &mut Flow) { ... }`")
    })?;
    let signature = &function.sig;
    if signature.inputs.len() != 1 {
        let span = if signature.inputs.is_empty() { signature.ident.span() } else { signature.inputs.span() };
        return Err(Error::new(span, "a job takes one argument: `flow: &mut Flow`"));
    }
    if let syn::ReturnType::Type(_, ty) = &signature.output {
        return Err(Error::new(ty.span(), "a job returns nothing: what is wrong with it is found when it is planned"));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new(asyncness.span(), "a job is not async: it only describes what is to be done"));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), "a job has no generic parameters"));
    }
    let name = &signature.ident;
    let label = name.to_string();
    Ok(quote! {
        #function

        #[cfg(target_arch = "wasm32")]
        #[doc(hidden)]
        #[allow(missing_docs, unsafe_code, clippy::all, reason = "generated")]
        mod __tidemill_component {
            pub struct Job;

            impl ::tidemill::guest::Job for Job {
                const NAME: &'static str = #label;

                fn define(flow: &mut ::tidemill::Flow) {
                    super::#name(flow);
                }
            }

            type Component = ::tidemill::guest::Component<Job>;
            ::tidemill::guest::export_component!(Component with_types_in ::tidemill::guest::bindings);
        }
    })
}
