# One image for every service: the binary and nothing else. Dependencies and build results stay in BuildKit's caches, so that a change of
# ours compiles ours alone.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin lastro && cp target/release/lastro /lastro \
    && mkdir -p /empty/var/lib/lastro

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /lastro /usr/local/bin/lastro
# What a named volume mounted here begins as: empty, and ours to write.
COPY --from=build --chown=65532:65532 /empty/var/lib/lastro /var/lib/lastro
USER 65532:65532
ENV LASTRO_OPS=0.0.0.0:9464
EXPOSE 8080 50051 9464
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["/usr/local/bin/lastro", "health"]
ENTRYPOINT ["/usr/local/bin/lastro"]
CMD ["--help"]
