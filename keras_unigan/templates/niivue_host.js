// Runs the NiiVue widget of the package ipyniivue in a plain page.
//
// The widget is an anywidget front-end module: it exports `initialize` and `render` and talks to a
// model (get, set, on, off, send). In a notebook the model mirrors Python; here it is this object.

class Model {
  constructor(state, models = new Map()) {
    this.state = state;
    this.handlers = new Map();
    this.widget_manager = { get_model: async (id) => models.get(id) };
    // The widget copies voxels to Python in pieces; there is none, and this tells it so.
    this._comm_live = false;
  }
  get(key) { return this.state[key]; }
  set(key, value) {
    if (this.state[key] === value) return;
    this.state[key] = value;
    this.emit(`change:${key}`);
  }
  save_changes() {}
  send_sync_message() { return ""; }
  on(name, handler) { this.handlers.set(name, [...(this.handlers.get(name) ?? []), handler]); }
  off(name, handler) {
    const kept = handler ? (this.handlers.get(name) ?? []).filter((other) => other !== handler) : [];
    this.handlers.set(name, kept);
  }
  emit(name, ...values) { for (const handler of this.handlers.get(name) ?? []) handler(...values); }
  // From the widget to its host.
  send(message) { this.emit("event", message); }
  // From the host to the widget.
  tell(type, ...data) { this.emit("msg:custom", { type, data }, []); }
}

const VOLUME = {
  path: { name: "", data: null }, url: "", paired_img_path: { name: "", data: null },
  paired_img_url: "", paired_img_data: null, colormap: "gray", opacity: 1, cal_min: null,
  cal_max: null, cal_min_neg: null, cal_max_neg: null, colormap_negative: "", colormap_type: 0,
  frame_4d: 0, colorbar_visible: false, colormap_label: null, colormap_invert: false,
  modulation_image: null, modulate_alpha: 0,
};
const OPTIONS = {
  dragAndDropEnabled: false, multiplanarShowRender: 0, sliceType: 3, isResizeCanvas: true,
  crosshairWidth: 0.4, crosshairWidthUnit: "percent",
  crosshairColor: [1, 0.85, 0.2, 0.9], backColor: [0, 0, 0, 1], loadingText: "", isNearestInterpolation: true,
  isRadiologicalConvention: false, isOrientationTextVisible: true,
};

// NiiVue on an element: layers of NIfTI bytes, the first one the scan.
export class Planes {
  static async on(element, module, moved) {
    const planes = new Planes();
    planes.models = new Map();
    planes.loaded = new Map();
    planes.count = 0;
    const state = {
      opts: OPTIONS, height: 400, volumes: [], meshes: [], background_masks_overlays: 0,
      draw_lut: null, draw_opacity: 0.8, draw_fill_overwrites: true, graph: null, scene: null,
      overlay_outline_width: 0, overlay_alpha_shader: 1, this_model_id: "",
    };
    planes.model = new Model(state, planes.models);
    planes.model.on("event", (message) => {
      if (message.event === "location_change") moved(message.data);
      if (message.event === "image_loaded") planes.loaded.get(message.data.id)?.(message.data);
    });
    await module.initialize({ model: planes.model });
    await module.render({ model: planes.model, el: element });
    return planes;
  }
  // Puts a layer on top in place of others (Models that it gave back, or undefined); `options` are
  // traits of ipyniivue's Volume. One change at a time: the widget works on each for a while.
  async put(bytes, options, others = []) {
    const id = `layer-${this.count++}`;
    const layer = new Model({ ...VOLUME, ...options, id, name: `${id}.nii`, data: new DataView(bytes) });
    this.models.set(id, layer);
    const drawn = new Promise((done, failed) => {
      this.loaded.set(id, done);
      setTimeout(() => failed(new Error("NiiVue did not draw the file")), 120000);
    });
    const gone = others.map((other) => `IPY_MODEL_${other?.get("id")}`);
    const kept = this.model.get("volumes").filter((name) => !gone.includes(name));
    this.model.set("volumes", [...kept, `IPY_MODEL_${id}`]);
    layer.dims = (await drawn).dims;
    await new Promise((done) => setTimeout(done));
    for (const other of others) this.models.delete(other?.get("id"));
    return layer;
  }
  option(name, value) {
    this.model.set("opts", { ...this.model.get("opts"), [name]: value });
    this.model.tell("update_gl_volume");
  }
  // Moves the crosshair by voxels of the scan in RAS order.
  step(x, y, z) { this.model.tell("move_crosshair_in_vox", x, y, z); }
}
