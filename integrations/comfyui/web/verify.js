// Shows the report of "Verify Unlearning Adapters" on the node itself.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

app.registerExtension({
  name: "unlearning_adapters.verify",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "UnlearningVerify") return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      before?.apply(this, arguments);
      let shown = this.widgets?.find((widget) => widget.name === "report_text");
      if (!shown) {
        shown = ComfyWidgets.STRING(this, "report_text", ["STRING", { multiline: true }], app).widget;
        shown.serializeValue = () => undefined;
        shown.options.serialize = false;
        shown.inputEl.readOnly = true;
        shown.inputEl.style.fontFamily = "monospace";
      }
      shown.value = message.text.join("\n");
      const [width, height] = this.computeSize();
      this.setSize([Math.max(this.size[0], width, 420), Math.max(this.size[1], height, 260)]);
      app.graph.setDirtyCanvas(true, true);
    };
  },
});
