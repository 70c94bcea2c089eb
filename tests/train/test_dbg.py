import jax, importlib.util, pathlib, contextlib, re, numpy as np
spec = importlib.util.spec_from_file_location("ts", pathlib.Path(__file__).with_name("test_step.py"))
ts = importlib.util.module_from_spec(spec); spec.loader.exec_module(ts)
rows = ts.rows
def test_x(tiny_folder, rows):
    for mesh in ts.MESHES:
      for use in (False, True):
        w = ts.World(tiny_folder, rows, mesh)
        s0 = w.learner.initial_state()
        weights = ts.place_rows(np.asarray(w.rows.mask, np.float32), w.mesh)
        with (jax.set_mesh(w.mesh) if use else contextlib.nullcontext()):
            c = ts.steps._sft_step.lower(w.learner.graph, w.learner.optimizer, s0, w.learner.frozen, w.rows, weights, remat=False, places=ts.steps._places(s0)).compile()
        hlo = c.as_text()
        n = {k: len(re.findall(rf" {k}(?:-start)?\(", hlo)) for k in ("all-reduce","all-gather","reduce-scatter","all-to-all","collective-permute")}
        m = c.memory_analysis()
        print("MESH", mesh, use, n, m.temp_size_in_bytes, c.cost_analysis().get("flops"))
